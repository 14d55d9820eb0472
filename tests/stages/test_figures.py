"""What an evaluation reports of pictures: accuracies by seed, by the number of objects, by the guide, and the speed."""

from types import SimpleNamespace

import pytest
import torch

import stages.judge
from models.condition import Condition
from stages.evaluate import _captioned
from stages.judge import evaluate_set
from tests.stages.handful import context_with, noise_pictures

ASKED = Condition.of_lists([[0], [1], [0, 1], [2, 3]], 6)
# the hits of each picture: of the first seed none, of the second all but the last pair's second object
HITS = {3: [0, 0, 0, 0], 8: [1, 1, 2, 1]}


class Sampler:
    """Draws pictures that hold their seed and place."""

    def sample(self, condition, keys, how):
        return torch.stack([torch.full((3, 64, 64), 1 / (10 * seed + i + 1)) for seed, _, i in keys])


def seen(images):
    """Returns the seed and the place of each picture that `Sampler` drew."""
    return [divmod(round(1 / value) - 1, 10) for value in images[:, 0, 0, 0].tolist()]


class Judge(torch.nn.Module):
    """Finds as many objects of each picture as `HITS` says, or, the guide, always the first one."""

    def __init__(self, hits=None):
        super().__init__()
        self.hits = hits

    def logits(self, images):
        scores = torch.zeros(len(images), 6)
        scores[:, 4:] = 0.5  # of objects that none was asked for
        for row, (seed, place) in enumerate(seen(images)):
            objects = [i for i in ASKED.objects[place].tolist() if i >= 0]
            for index in objects[: self.hits[seed][place] if self.hits else 1]:
                scores[row, index] = 1
        return scores


def test_each_accuracy_is_of_the_seed_the_pictures_and_the_network_it_names():
    context = context_with("eval.seeds=[3,8]")
    found, pictures = evaluate_set(Sampler(), Judge(HITS), "test", ASKED, context, Judge())
    assert found["per_seed"] == pytest.approx([0, 5 / 6]) and found["accuracy"] == pytest.approx(5 / 12)
    assert found["std"] == pytest.approx((5 / 6) / 2**0.5), "of a sample of two"
    assert found["by_objects"] == pytest.approx({"1": 2 / 4, "2": 3 / 8}), "over both seeds"
    assert found["accuracy_by_the_guide"] == pytest.approx(4 / 6), "not the judge's"
    assert [seed for seed, _ in seen(pictures)] == [3] * 4, "the pictures of the first seed"
    assert "by_other_judges" not in found
    alone, _ = evaluate_set(Sampler(), Judge(HITS), "test", ASKED, context_with("eval.seeds=[8]"))
    assert alone["std"] == 0 and alone["accuracy"] == pytest.approx(5 / 6) and "accuracy_by_the_guide" not in alone


def test_the_speed_counts_the_pictures_of_all_seeds(monkeypatch):
    moments = iter((10.0, 12.0))
    monkeypatch.setattr(stages.judge, "time", SimpleNamespace(perf_counter=lambda: next(moments)))
    found, _ = evaluate_set(Sampler(), Judge(HITS), "test", ASKED, context_with("eval.seeds=[3,8]"))
    assert found["images_per_second"] == 2 * 4 / 2


def test_a_caption_marks_the_objects_that_the_judge_found(tmp_path):
    class Fixed(torch.nn.Module):
        def logits(self, images):
            return torch.tensor([[5.0, 0, 4], [1, 0, 0]])

    labels = torch.tensor([[0.0, 1, 1], [1, 0, 0]])
    first, second = _captioned(torch.zeros(2, 3, 64, 64), labels, Fixed(), noise_pictures(tmp_path), context_with())
    assert first["labels"] == [{"name": "cyan sphere", "hit": False}, {"name": "gray cylinder", "hit": True}]
    assert second["labels"] == [{"name": "red cube", "hit": True}] and first["png"].startswith(b"\x89PNG")
