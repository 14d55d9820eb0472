"""Quality by other measures: by which network, of which pictures, and what a damaged file of weights says."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from data.images import to_unit
from models.condition import Condition
from stages.engine import photographs
from stages.engine.errors import UserError
from stages.experiments.quality import FIGURES, cells, figures, load_quality
from tests.stages.handful import context_with, noise_pictures


def held_out(tmp_path):
    """Returns a data set of twelve held-out pictures: six of noise around black, then six of noise around grey."""
    noise = torch.randint(40, (12, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    noise[6:] += 100
    conditions = Condition.of_lists([[i % 3] for i in range(12)], classes=3)
    return replace(noise_pictures(tmp_path), held_out_images=noise, held_out_conditions=conditions)


JUDGE = SimpleNamespace(features=lambda images: images.mean(dim=(2, 3)))


@pytest.fixture
def without_photographs(monkeypatch):
    monkeypatch.setattr(photographs, "PACKAGE", "no_such_package")


def test_a_model_that_draws_the_floor_s_pictures_has_the_floor_s_figures(tmp_path, without_photographs):
    """One half is asked for and the other half is compared with: no picture is compared with itself."""
    dataset, asked = held_out(tmp_path), []
    quality = load_quality(context_with(), dataset, JUDGE)

    def sample(condition, keys, how):
        asked.append((condition.labels, bool(condition.placed.any())))
        return to_unit(dataset.held_out_images[:6])

    found = quality.of(SimpleNamespace(sample=sample))
    assert found == quality.floor and found["features"] == "evaluator" and found["pictures"] == 6
    assert torch.equal(asked[0][0], dataset.held_out_conditions[:6].labels) and not asked[0][1]
    assert found["precision"] == 0 and found["frechet_distance"] > 0.1
    assert "the network for photographs is not installed" in quality.words
    assert load_quality(context_with(), replace(dataset, held_out_images=dataset.held_out_images[:3]), JUDGE) is None


def test_weights_that_are_not_the_published_ones_are_one_line(tmp_path, monkeypatch):
    package = tmp_path / "lite_weights_of_a_test"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('the package must not be run')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(photographs, "PACKAGE", package.name)
    with pytest.raises(UserError, match="No such file"):
        photographs.load_photograph_network()
    (package / photographs.WEIGHTS).write_bytes(b"something else")
    with pytest.raises(UserError, match=r"checksum differs.*requirements-quality\.lock"):
        photographs.load_photograph_network()


@pytest.mark.skipif(photographs.weights_file() is None, reason="needs requirements-quality.lock")
def test_the_published_weights_give_what_the_published_code_gives():
    """The figures are of efficientnet_lite_pytorch 0.1.0 with the same weights and picture."""
    network = photographs.load_photograph_network()
    x = torch.linspace(-1, 1, 224).expand(1, 3, 224, 224)
    best = network(x).topk(3)
    assert best.indices.tolist() == [[534, 499, 901]]
    assert best.values[0].tolist() == pytest.approx([6.0835, 5.5409, 4.9812], abs=1e-3)
    assert network.features(x).norm().item() == pytest.approx(15.4411, abs=1e-3)


def test_cells_follow_the_head():
    real = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    found = figures(real, real)
    assert cells(found) == ["0.0", 1.0, 1.0, 1.0] or cells(found)[0] == "-0.0"
    assert cells(None) == [None] * len(FIGURES)


def test_precision_is_of_what_is_made_and_recall_and_coverage_are_of_what_is_real():
    """On a line: real samples are at 0 to 9, made ones at 0 to 3.6, and two far away from all."""
    real, made = torch.zeros(10, 2), torch.zeros(12, 2)
    real[:, 0], made[:10, 0] = torch.arange(10.0), torch.arange(10.0) * 0.4
    made[10:, 0] = torch.tensor([60.0, 61.0])
    found = figures(real, made)
    assert found["precision"] == pytest.approx(10 / 12), "two are far from every real one"
    assert found["recall"] == 1, "the third neighbour of a far one is farther than every real one"
    assert found["coverage"] == pytest.approx(7 / 10), "3.6 is farther from 7, 8 and 9 than their fifth neighbours"
