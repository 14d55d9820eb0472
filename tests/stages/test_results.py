"""The documentation's tables are those of docs/results.json, and reports go into it with their provenance."""

import json
import re
import shutil
import subprocess
import sys

import pytest

from stages.engine.errors import UserError
from stages.experiments import results as module
from stages.experiments.pairs import PAIRS
from stages.experiments.results import FIGURE, FILE, PAGES, ROWS, entries_of, said, table_of, with_entries, written
from stages.experiments.systems import SYSTEMS
from tests.conftest import HERE

RESULTS = json.loads((HERE / FILE).read_text())


@pytest.mark.parametrize("page", PAGES)
def test_the_tables_agree_with_the_committed_file(page):
    text = (HERE / page).read_text()
    assert "<!-- results:" in text
    assert written(page, text, RESULTS) == text, "run `make results` and commit both"


def test_every_table_is_on_a_page_and_no_figure_is_missing():
    pages = "".join((HERE / page).read_text() for page in PAGES)
    assert {name for _, name, _ in module.MARKED.findall(pages)} == RESULTS["tables"].keys()
    for table in RESULTS["tables"].values():
        named = FIGURE.findall(json.dumps(table))
        assert named and all(module.figure_of(RESULTS["entries"], *figure) != "not measured" for figure in named)


def test_no_accuracy_in_the_file_s_tables_is_typed_by_hand():
    """Reports' figures and targets aside, which are not measured here."""
    for name, table in RESULTS["tables"].items():
        for row in table["rows"]:
            assert not re.search(r"\.\d{3} ±", " ".join(row)), f"{name}: {row}"


def test_each_measured_entry_says_where_it_is_from():
    assert all(entry.get("source") for entry in RESULTS["entries"].values())
    assert not any(
        entry["source"].startswith("/") or "root=" in entry.get("command", "") for entry in RESULTS["entries"].values()
    )
    assert all(entry.get("date") or entry["source"] == "the reports" for entry in RESULTS["entries"].values())


def test_figures_as_tables_show_them():
    assert said({"accuracy": 0.95, "std": 0.0144}) == ".950 ± .014"
    assert (said(1.0), said(0.0), said(-0.002), said(2300), said(None)) == ("1.000", ".000", "-.002", "2,300", "–")
    entries = {"x/ldm": {"test": {"accuracy": 0.5, "std": None}, "minutes": 38.6, "steps": 2300, "db": 41.94}}
    table = {"head": ["", "a"], "rows": [["**b**", "{x/ldm:test} in {x/ldm:minutes.whole}"], ["", "{y/ldm:test}"]]}
    assert table_of(table, entries) == "| | a |\n|---|---|\n| **b** | .500 in 39 min |\n| | not measured |"
    assert module.figure_of(entries, "x/ldm", "budget") == "2,300 steps, 38.6 min"
    assert module.figure_of(entries, "x/ldm", "db.d1") == "41.9"
    with pytest.raises(UserError, match="1 cells below a head of 2"):
        table_of(table | {"rows": [["only one"]]}, entries)
    with pytest.raises(UserError, match="no table z"):
        written("README.md", "<!-- results:z -->\n<!-- end -->", {"tables": {}, "entries": {}})


def test_an_evaluation_s_report_becomes_entries(chain):
    found = entries_of(chain / "smoke/eval")
    report = json.loads((chain / "smoke/eval/report.json").read_text())
    assert found.keys() == {"smoke/ldm", "smoke/gan", "smoke/evaluator", "smoke/vae", "smoke/reader"}
    ldm = found["smoke/ldm"]
    assert ldm["test"]["accuracy"] == report["results"]["ldm"]["test"]["accuracy"]
    assert ldm["steps"] == report["provenance"]["steps"]["ldm"]
    assert (ldm["cores"] == "one core") == (", 1 thread" in ldm["device"]) and "core" in ldm["cores"]
    assert ldm["source"] == "checkpoints/smoke/eval/report.json"
    assert ldm["code_sha256"] == report["provenance"]["code_sha256"]
    with pytest.raises(UserError, match="not a report of `make eval`"):
        entries_of(chain / "smoke/ldm/config.yaml")


def test_an_entry_has_its_own_training_and_says_it_in_minutes_and_cores(tmp_path):
    stages = {"ldm": (4000, 3069.0, 1), "evaluator": (900, 90.0, 2), "vae": (800, 660.0, 4)}
    provenance = {"experiment": "mine", "date": "2026-12-01", "configuration_sha256": "c", "code_sha256": "d"}
    provenance |= {"seeds": [0, 1], "steps": {stage: steps for stage, (steps, _, _) in stages.items()}}
    provenance |= {"seconds": {stage: seconds for stage, (_, seconds, _) in stages.items()}}
    made = {n: f"A CPU, {n} thread{'s' * (n > 1)}" for n in (1, 2, 4)}
    provenance["made_with"] = {stage: {"device": made[threads]} for stage, (_, _, threads) in stages.items()}
    figures = {"accuracy": 0.9, "std": 0.01, "by_objects": {"1": 0.9}, "per_seed": [0.9]}
    figures["by_other_judges"] = {"accuracy": 0.8, "agreement": 0.7, "per_judge": {}}
    report = {"provenance": provenance, "evaluator": {"kind": "trained", "real_accuracy": 0.99}, "reader": None}
    report |= {"results": {"ldm": {"test": figures}}, "vae": {"psnr": 30.5}}
    (tmp_path / "report.json").write_text(json.dumps(report))
    found = entries_of(tmp_path)
    assert found.keys() == {"mine/ldm", "mine/evaluator", "mine/vae"}
    shown = {name: [module.figure_of(found, name, field) for field in ("budget", "cores")] for name in found}
    assert shown["mine/ldm"] == ["4,000 steps, 51.1 min", "one core"]
    assert shown["mine/evaluator"] == ["900 steps, 1.5 min", "two cores"]
    assert shown["mine/vae"] == ["800 steps, 11.0 min", "four cores"]
    assert module.figure_of(found, "mine/ldm", "minutes.whole") == "51 min"
    ldm = found["mine/ldm"]["test"]
    assert (ldm["accuracy"], ldm["other_judges"], ldm["agreement"]) == (0.9, 0.8, 0.7)
    assert found["mine/evaluator"]["real_accuracy"] == 0.99 and found["mine/vae"]["psnr"] == 30.5
    assert module._cores("A CPU, 16 threads") == "16 cores" and module._cores("NVIDIA H200") == "NVIDIA H200"


def test_a_row_that_no_table_names_is_added(tmp_path):
    judged = {"accuracy": 0.5, "std": 0.01, "by_objects": {}, "by_other_judges": {"accuracy": 0.6, "agreement": 0.9}}
    sets = {name: judged for name in ("test", "new_test")}
    row = {"system": "latent diffusion", "figures": sets, "reported": [0.819, 0.821], "steps": 7, "minutes": 1.25}
    row |= {"command": "python -m x -- root=/home/me data.folder='/my pictures' eval.seeds=[0] evaluator.checkpoint=/a"}
    row |= {"device": "A CPU, 1 threads", "judge": "trained", "date": "2026-12-01", "seeds": [0]}
    row["quality"] = {"frechet_distance": 12.5, "precision": 0.5, "recall": 0.25}
    (tmp_path / "report.json").write_text(json.dumps({"ldm": row, "gan": row, "ddpm-up": {"fault": "not run"}}))
    found = entries_of(tmp_path)
    assert found.keys() == {ROWS + "ldm", ROWS + "gan"}
    assert found[ROWS + "gan"]["command"] == "python -m x -- data.folder=DIR 'eval.seeds=[0]' evaluator.checkpoint=FILE"
    assert found[ROWS + "gan"]["source"] == "checkpoints/reproduce/report.json"
    before = {"entries": {}, "tables": {"systems": {"head": ["x"] * 9, "rows": [[f"{{{ROWS}ldm:test}}"] * 9]}}}
    after = with_entries(before, found)
    assert len(after["tables"]["systems"]["rows"]) == 2
    line = table_of(after["tables"]["systems"], after["entries"]).splitlines()[-1]
    accuracies = ".819 / .821 | .500 ± .010 | .500 ± .010 | .600 / .600; .90 / .90"
    assert line == f"| latent diffusion | `gan` | {accuracies} | 12.5, .50, .25 | 7 steps, 1.2 min | |"
    assert with_entries(after, found) == after


def test_several_trainings_of_one_choice_are_compared():
    def row(accuracy, date, **more):
        sets = {"test": {"accuracy": accuracy}, "new_test": {"accuracy": accuracy + 0.05}}
        return sets | {"date": date, "source": "checkpoints/reproduce/report.json", "steps": 6000} | more

    (pair,) = PAIRS.values()
    keys, accuracies = [*pair[0], *pair[1]], (0.5, 0.6, 0.7, 0.6997, 0.5, 0.6)
    dates = [f"2026-12-0{day}" for day in (1, 5, 2, 3, 4, 4)]
    found = {ROWS + key: row(*of_row) for key, *of_row in zip(keys, accuracies, dates, strict=True)}
    before = {"entries": {}, "tables": {}}

    def entry_of(rows):
        return with_entries(before, rows)["entries"].get(f"pairs/{pair[0][0]}")

    entry = entry_of(found)
    assert entry["trainings"] == "3 and 3" and entry["steps"] == 6000 and entry["date"] == "2026-12-05"
    assert said(entry["first"]["test"]) == ".600 ± .100" and said(entry["second"]["new_test"]) == ".650 ± .100"
    assert said(entry["difference"]["new_test"]) == ".000 ± .082"  # -.0001; variances .01: sqrt(.01 / 3 + .01 / 3)
    entry = entry_of({key: values for key, values in found.items() if key != ROWS + keys[3]})
    assert (entry["trainings"], entry["first"]["trainings"], entry["second"]["trainings"]) == ("3 and 2", 3, 2)
    assert said(entry["difference"]["test"]) == ".050 ± .076"  # sqrt(.01 / 3 + .005 / 2)
    assert entry_of({ROWS + pair[0][0]: row(0.5, ""), ROWS + pair[1][0]: row(0.5, "")}) is None, "no standard error"
    for other in (
        {"steps": 600},
        {"real_accuracy": 0.5},
        {"configuration": "x"},
        {"seeds": [1]},
        {"settings": ["x=1"]},
    ):
        assert entry_of(found | {ROWS + keys[0]: row(0.5, dates[0], **other)}) is None, f"not made alike: {other}"
    own = {"settings": [*SYSTEMS[keys[1]].changes]}
    assert entry_of(found | {ROWS + keys[1]: row(0.6, dates[1], **own)})["trainings"] == "3 and 3"
    before = with_entries(before, found)
    assert entry_of({ROWS + keys[0]: row(0.5, dates[0], steps=600)}) is None, "the comparison no longer holds"
    before = {"entries": {}, "tables": {}}
    without = {key: {name: v for name, v in values.items() if name != "test"} for key, values in found.items()}
    assert entry_of(found | {key: without[key] for key in [*without][:1]})["first"].keys() == {"new_test", "trainings"}
    none = {key: {n: v for n, v in values.items() if n != "new_test"} for key, values in without.items()}
    assert entry_of(none) is None, "other files of label sets"


def test_what_follows_from_the_committed_results_is_up_to_date():
    assert with_entries(RESULTS, {}) == RESULTS


def test_the_command_writes_the_pages_and_refuses_in_one_line(tmp_path, chain):
    for name in (*PAGES, FILE):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(HERE / name, tmp_path / name)
    changed = json.loads((tmp_path / FILE).read_text())
    changed["entries"]["iclevr/ldm"]["test"]["accuracy"] = 0.123
    (tmp_path / FILE).write_text(json.dumps(changed))

    def run(*reports):
        code = "from stages.experiments.results import main; main()"
        command = [sys.executable, "-c", code, *map(str, reports)]
        return subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(HERE)}, capture_output=True, text=True)

    assert (done := run(chain / "smoke/eval")).returncode == 0, done.stderr
    assert "| i-CLEVR, latent diffusion | .123 |" in (tmp_path / "README.md").read_text()
    assert json.loads((tmp_path / FILE).read_text())["entries"].keys() >= {"smoke/ldm", "smoke/gan", "iclevr/ldm"}
    before = (tmp_path / FILE).read_bytes()
    wrong = run(tmp_path / "README.md")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1) and "error: " in wrong.stderr
    assert (tmp_path / FILE).read_bytes() == before
