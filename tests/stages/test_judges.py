"""Further judges: trained under their own names from other seeds, and used by `make eval` when they are there."""

import json
from dataclasses import replace

import pytest
import torch

from models.evaluator import Evaluator, agreement, found_labels, top_k_hits
from stages.engine.dataset import load_dataset
from stages.engine.errors import UserError
from stages.engine.export import read_about, save_export
from stages.judge import by_others, refuse_other_pictures
from tests.helpers import assert_one_line
from tests.stages.handful import context_with


def test_judges_agree_where_all_found_a_label_or_none_did():
    labels = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    right = labels.clone()
    assert found_labels(right, labels).tolist() == [[True, True, False], [False, False, True]]
    assert top_k_hits(right, labels).tolist() == [2, 1]
    first = found_labels(right, labels)
    half = found_labels(torch.tensor([[3.0, 1.0, 2.0], [0.0, 0.0, 1.0]]), labels)
    assert half.tolist() == [[True, False, False], [False, False, True]]
    assert agreement([first, half], labels) == pytest.approx(2 / 3)
    assert agreement([first, half, torch.zeros_like(first)], labels) == 0
    assert agreement([first, first], labels) == 1


def test_the_other_judges_mean_leaves_the_judge_out():
    class Fixed(torch.nn.Module):
        def __init__(self, scores):
            super().__init__()
            self.scores = scores

        def logits(self, images):
            return self.scores.repeat(len(images) // len(self.scores), 1)

    labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    right, half = Fixed(labels), Fixed(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    found = by_others(right, {"judge1": right, "judge2": half}, torch.zeros(3, 2, 3, 8, 8), labels, context_with())
    assert found == {"accuracy": 0.75, "per_judge": {"judge1": 1.0, "judge2": 0.5}, "agreement": 0.5}


def test_judges_are_trained_from_other_seeds_and_eval_uses_them(stage, chain_copy):
    arguments = (f"root={chain_copy}", "models=[gan]")
    assert stage("evaluate", *arguments)[0] == 0
    before = json.loads((chain_copy / "smoke/eval/report.json").read_text())
    assert before["other_judges"] == {} and "by_other_judges" not in before["results"]["gan"]["test"]
    status, said = stage("judges", *arguments)
    assert status == 0 and "all 3 judges agree on" in said, said
    digests = {read_about(chain_copy / f"{name}/evaluator/export.safetensors", "")["sha256"] for name in NAMES}
    assert len(digests) == 3
    status, said = stage("judges", *arguments)
    assert status == 0 and said.count("finished already") == 2, said
    status, said = stage("evaluate", *arguments)
    assert status == 0 and "the old report is now" in said, said
    after = json.loads((chain_copy / "smoke/eval/report.json").read_text())
    assert after["other_judges"].keys() == {"judge1", "judge2"}
    for name, old in before["results"]["gan"].items():
        if name == "held_out":
            continue
        new = after["results"]["gan"][name]
        assert new["per_seed"] == old["per_seed"]
        opinions = new["by_other_judges"]
        assert opinions["accuracy"] == pytest.approx(sum(opinions["per_judge"].values()) / 2)
        assert 0 <= opinions["agreement"] <= 1
    assert "2 further judges" in (chain_copy / "smoke/eval/report.html").read_text()
    assert "Agreement is the share" in (chain_copy / "smoke/eval/report.md").read_text()
    status, said = stage("evaluate", *arguments)
    assert status == 0 and "finished already" in said, said


NAMES = ("smoke", "smoke-judge1", "smoke-judge2")


def test_the_same_scenes_drawn_by_another_processor_are_no_other_pictures(chain_copy):
    context = context_with(f"root={chain_copy}")
    dataset, about = (
        load_dataset(context.config, context.device),
        read_about(chain_copy / "smoke/evaluator/export.safetensors", ""),
    )
    assert about["identity"]["parent scenes"] == dataset.scenes != ""
    about["identity"]["parent data"] = "other bits"
    refuse_other_pictures(context, {"evaluator": about}, dataset)
    without = replace(dataset, scenes="")
    for other in (about, {**about, "identity": about["identity"] | {"parent scenes": "others"}}):
        with pytest.raises(UserError, match="other pictures"):
            refuse_other_pictures(context, {"evaluator": other}, dataset if other is not about else without)


def test_a_judge_of_other_pictures_is_one_line(stage, chain_copy):
    about = read_about(chain_copy / "smoke/evaluator/export.safetensors", "")
    about["identity"] |= {"parent data": "other", "parent scenes": "others"}
    save_export(chain_copy / "smoke-judge1/evaluator/export.safetensors", Evaluator(24).state_dict(), about)
    assert_one_line(*stage("evaluate", f"root={chain_copy}", "models=[gan]"), "smoke-judge1", "other pictures")
