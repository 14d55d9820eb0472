"""Files of label sets other than test and new_test: what the configuration may list, and the pages of experiments."""

import json

import pytest
import torch

from stages.engine.dataset import load_dataset
from stages.experiments.pace import figure as figure_of_pace
from stages.experiments.pace import sets_of
from stages.experiments.samplers import figure as figure_of_samplers
from stages.experiments.systems_page import _row, mean_of
from tests.data.folder import write_folder
from tests.helpers import assert_one_line
from tests.stages.handful import context_with


def test_the_label_sets_are_those_of_the_files_that_are_listed(tmp_path):
    folder = write_folder(tmp_path / "d")
    (folder / "mine.json").write_text(json.dumps([["cyan sphere", "gray cube"]]))
    (folder / "new_test.json").unlink()
    changes = (f"root={tmp_path}", f"data.folder={folder}", "data.validation_every=3", "data.conditions=[mine,test]")
    dataset = load_dataset(context_with(*changes).config, torch.device("cpu"))
    assert [(name, len(asked)) for name, asked in dataset.test_sets.items()] == [("mine", 1), ("test", 2)]


@pytest.mark.parametrize(
    ("listed", "parts"),
    [
        ("[]", ["data.conditions"]),
        ("[test, test]", ["data.conditions", "repeats an entry"]),
        ("[test.json/..]", ["data.conditions", "test.json/.."]),
        ("[train]", ["data.conditions", "'train'"]),
        ("[held_out]", ["data.conditions", "'held_out'"]),
        ("[3]", ["data.conditions", "text"]),
        ("[gone]", ["gone.json is missing"]),
    ],
)
def test_a_list_that_names_no_files_is_one_line(stage, tmp_path, listed, parts):
    arguments = (f"root={tmp_path}", f"data.folder={write_folder(tmp_path / 'd')}", "data.validation_every=3")
    assert_one_line(*stage("evaluator", *arguments, f"data.conditions={listed}"), *parts)


@pytest.mark.parametrize("sets", [("one",), ("one", "two", "three")])
def test_figures_show_any_number_of_label_sets(sets):
    results = {"DDIM, 5 steps": {name: {"accuracy": 0.5, "std": 0.1} for name in sets}}
    assert figure_of_samplers(results, {"DDIM, 5 steps": 0.1}).startswith(b"\x89PNG")
    names = sets_of(context_with(f"data.conditions={json.dumps(sets)}"))
    assert names == [f"accuracy_{name}" for name in sets]
    found = {"plain": {"previews": [(60.0, [0.5] * len(sets))]}}
    assert figure_of_pace(found, 0.8, names).startswith(b"\x89PNG")


def test_a_row_of_the_reports_systems_has_a_cell_for_each_label_set():
    figures = {"one": {"accuracy": 0.5, "std": 0.1}}
    made = {"figures": figures, "steps": 1, "minutes": 1.0, "device": "d", "judge": "trained"}
    row = _row(context_with(), "ldm", made, ("one", "two"))
    assert [cell["figure"] for cell in row["ours"]] == ["0.500 ± 0.100", "–"] and row["others"] == ["–", "–"]
    failed = _row(context_with(), "ldm", {"fault": "not run"}, ("one",))
    assert (len(failed["ours"]), failed["short"], failed.keys()) == (1, "not run", row.keys())


def test_a_row_s_further_judges_and_their_agreement_are_beside_ours():
    def figures(accuracy, others, agreement):
        return {"accuracy": accuracy, "std": 0.0, "by_other_judges": {"accuracy": others, "agreement": agreement}}

    made = {"figures": {"test": figures(0.5, 0.6, 0.8), "new_test": figures(0.7, 0.9, 0.9)}, "steps": 1200}
    made |= {"minutes": 1.5, "device": "d", "judge": "trained", "seeds": [4, 5, 6]}
    row = _row(context_with(), "gan", made, ("test", "new_test"))
    assert row["others"] == ["0.600", "0.900"] and row["agreement"] == pytest.approx(0.85)
    assert (row["seeds"], row["steps"], row["minutes"], row["reported"]) == (3, "1,200", "1.5", "0.527 / 0.678")
    assert mean_of(made, ("test", "new_test")) == pytest.approx(0.6) and mean_of({}, ("test",)) == -1
    assert _row(context_with(), "gan", made, ("new_test", "test"))["reported"] == "0.678 / 0.527"
