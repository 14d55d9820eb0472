"""`make reproduce` plans, runs rows as children one a core, survives kills, and stops at a given hour."""

import json
import os
import signal
from argparse import Namespace
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stages.engine.command import Context
from stages.engine.config import load
from stages.engine.errors import UserError
from stages.engine.export import load_export, save_export
from stages.experiments.pairs import PAIRS
from stages.experiments.plan import (
    START_UP,
    Pace,
    Paces,
    Planned,
    estimate,
    in_order,
    missing_shared,
    newest_step,
    table_of,
)
from stages.experiments.reproduce import Planner, jobs_of, main, run
from stages.experiments.rows import changes_of, homes_of, row_of
from stages.experiments.systems import SYSTEMS
from stages.experiments.systems_page import differences_of, ordered, short_of, shown_sets, write_page
from tests.conftest import ask_for_few, copy_chain, finish, make, start_stage
from tests.helpers import assert_one_line, digest, wait_for

ROWS = ("gan", "ddpm-up")  # the two quickest
MODELS = {"gan": "smoke/gan", "ddpm-up": "smoke-ddpm-up/ddpm"}
PATIENCE = 900.0  # seconds for a command whose rows are children: imports take most of it
SMALL = ("ddpm.batch=4", "ddpm.width=8", "ddpm.timesteps=12", "eval.seeds=[0]", "eval.steps=1")
LONG = ("gan.steps=12", "gan.checkpoint_every=1", "gan.preview_every=12", "gan.log_every=6", "ddpm.steps=3")


def without(*stages: str):
    """Returns what leaves these stages' folders out of a copy of the chain."""

    def skip(folder: str, names: list[str]) -> list[str]:
        return [n for n in names if n in (*stages, "eval") or n.startswith("step-")]

    return skip


@pytest.fixture
def roots(chain, tmp_path):
    """Returns two roots with the chain's scenes, evaluator and autoencoder, but none of its models."""
    for name in ("a", "b"):
        copy_chain(chain, root := tmp_path / name, without("ldm", "gan"))
        ask_for_few(root / "smoke/render", 4)
    return tmp_path / "a", tmp_path / "b"


def started(root, *flags):
    return start_stage("reproduce", "--only", *ROWS, *flags, "--", f"root={root}", *SMALL, *LONG)


def children_of(pid: int) -> list[int]:
    return [*map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_rows_are_planned_stopped_and_run(stage, roots):
    """One step of training each: a plan and the end of the time run none, and then each runs once."""
    (root, _), rows = roots, ("--steps", "1", "--only", *ROWS)
    asked = ("--", f"root={root}", *SMALL)
    status, said = stage("reproduce", *rows, "--plan", *asked)
    assert status == 0 and "2 of 2 rows to run" in said and "missing:" not in said, said
    assert "not begun" in said and not (root / "smoke-gan/gan").exists()
    paces = (root / "reproduce/timing.json").read_bytes()
    status, said = stage("reproduce", *rows, "--hours", "0.0001", *asked)
    assert status == 0 and "stopped after 0.0001 hours; the same command continues. Left:" in said, said
    assert (root / "reproduce/timing.json").read_bytes() == paces and "timing a few steps" not in said
    assert not (root / "smoke-gan/gan").exists() and "not run yet" in (root / "reproduce/report.md").read_text()
    status, said = stage("reproduce", *rows, *asked)
    assert status == 0, said
    found = json.loads((root / "reproduce/report.json").read_text())
    for row in (found[key] for key in ROWS):
        assert row["device"].endswith(", 1 thread") and row["steps"] == 1
        assert row["quality"].keys() >= {"frechet_distance", "precision", "recall", "coverage"}
    html = (root / "reproduce/report.html").read_text()
    assert html.count("data:image/png") == len(ROWS) * (1 + html.count('<div class="row">'))
    status, said = stage("reproduce", *rows, *asked)
    assert status == 0 and "0 of 2 rows to run" in said, said


@pytest.mark.faults
@pytest.mark.timeout(3000)
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's /proc")
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs a machine of two cores")
def test_rows_end_with_the_same_bits_however_they_were_run(roots):
    """Two at a time, uninterrupted; and one at a time, with its parent killed."""
    whole, root = roots
    status, said = finish(started(whole, "--jobs", "2"))
    assert status == 0, said
    pinned = len(os.sched_getaffinity(0)) < 2
    assert ("warning: --jobs 2, but this process is pinned to fewer cores: 1 at a time" in said) == pinned
    parent = started(root)
    wait_for(lambda: [*(root / "smoke/gan").glob("step-*.ckpt")], PATIENCE)
    (child,) = children_of(parent.pid)
    parent.send_signal(signal.SIGKILL)
    finish(parent)
    wait_for(lambda: not is_alive(child), 200)
    status, said = finish(started(root))
    assert status == 0, said
    for model in MODELS.values():
        assert digest(root / model) == digest(whole / model)
    rows = [json.loads((r / "reproduce/report.json").read_text()) for r in roots]
    for key in ROWS:
        first, second = (found[key]["figures"]["test"]["per_seed"] for found in rows)
        assert first == second and rows[0][key]["device"].endswith(", 1 thread")


def test_make_trains_nothing_for_a_plan():
    said = make("reproduce", "-n", "CONFIG=configs/smoke.yaml", "FLAGS=--only gan --plan").stdout
    assert " --only gan --plan " in said and "-m stages.experiments.reproduce" in said
    made = ("-m stages.render ", "-m stages.evaluator ", "-m stages.vae ")
    assert not any(stage in said for stage in made)
    said = make("reproduce", "-n", "CONFIG=configs/smoke.yaml", "FLAGS=--only gan").stdout
    assert all(stage in said for stage in made)


def test_a_plan_of_nothing_says_what_is_missing(stage, tmp_path):
    status, said = stage("reproduce", "--plan", "--only", *ROWS, "ldm", "--", f"root={tmp_path}")
    assert status == 0, said
    lines = [line.split(None, 4) for line in said.splitlines()]
    states = {line[1]: (line[0], line[4]) for line in lines if len(line) == 5 and line[0] == "?"}
    assert states["scenes"] == ("?", "not drawn")
    assert states["evaluator"] == ("?", "not begun; cannot be timed without scenes")
    assert states["vae"] == ("?", "not begun; cannot be timed without scenes, evaluator")
    assert "ldm" in said and said.count("cannot be timed without scenes, evaluator, vae") == 1  # of the LDM
    assert "missing: scenes, evaluator, vae; `make reproduce` without --plan makes them first" in said
    assert "; 3 of the rows cannot be timed until then" in said
    assert not any((tmp_path / "smoke").glob("*/*.safetensors")) and not (tmp_path / "smoke/render").exists()


def test_a_plan_times_the_networks_that_rows_share(chain, tmp_path, context):
    """What is missing is timed with what is there: a model without the autoencoder only if it does not use it."""
    copy_chain(chain, root := tmp_path / "root", without("vae", "ldm", "gan"))
    ask_for_few(root / "smoke/render", 4)
    context = replace(context, config=load("configs/smoke.yaml", [f"root={root}", *SMALL]))
    planner = Planner(context, homes_of(context))
    rows = {row.key: row for row in planner.of(["ldm", "ddpm-up"], {})}
    (vae,) = planner.shared
    assert (vae.stage, vae.state) == ("vae", "not begun") and vae.minutes > START_UP
    assert rows["ddpm-up"].minutes > START_UP and rows["ldm"].minutes == 0
    assert rows["ldm"].state == "not begun; cannot be timed without vae"
    configs = [row_of(context, key, planner.homes).config for key in ("ldm", "ddpm-up")]
    assert (planner.lacking(*configs), planner.lacking(configs[1]), planner.lacking()) == (["vae"], [], [])
    (root / "smoke/evaluator/export.safetensors").unlink()
    evaluator, vae = missing_shared(context, planner.paces)
    assert (evaluator.stage, evaluator.state) == ("evaluator", "not begun") and evaluator.minutes > START_UP
    assert vae.minutes == 0 and vae.state.endswith("cannot be timed without evaluator")
    assert not (root / "smoke/vae").exists()


def test_rows_of_another_experiment_are_never_mixed_in(stage, tmp_path):
    (tmp_path / "reproduce").mkdir()
    (tmp_path / "reproduce/report.json").write_text(json.dumps({"gan": {"experiment": "other-gan", "figures": {}}}))
    said = stage("reproduce", "--plan", "--only", "gan", "--", f"root={tmp_path}")
    assert_one_line(*said, "has rows of another experiment (other-gan)", "root=DIR")


def test_rows_without_what_they_share_are_not_begun(stage, tmp_path):
    said = stage("reproduce", "--only", "ldm", "--", f"root={tmp_path}")
    assert_one_line(*said, "scenes, evaluator, vae: not there yet; run `make vae CONFIG=", "as `make reproduce` does")
    assert not (tmp_path / "smoke-ldm").exists()


def test_wrong_flags_are_one_line(stage, tmp_path):
    for flags, words in ((("--jobs", "0"), "--jobs 0"), (("--hours", "0"), "--hours 0"), (("--jobs", "999"), "cores")):
        assert_one_line(*stage("reproduce", "--only", "gan", *flags, "--", f"root={tmp_path}"), words)


@pytest.fixture
def context(tmp_path):
    arguments = Namespace(config="configs/smoke.yaml", steps=None, overrides=[], fresh=True, only=[])
    config = load("configs/smoke.yaml", [f"root={tmp_path}"])
    return Context(config, torch.device("cpu"), torch.float32, arguments, 0.0, ExitStack())


def test_a_training_that_rows_share_starts_again_only_once(context):
    folders = [Path("x/gan"), Path("x/gan"), Path("y/gan")]
    plan = [Planned(k, 1.0, "", 0.0, f, frozenset({f})) for k, f in zip("abc", folders, strict=True)]
    assert ["--fresh" in job.words for job in jobs_of(context, plan)] == [True, False, True]


def test_rows_of_reports_come_first_by_accuracy_per_minute():
    def planned(minutes, gain):
        return Planned("gan", minutes, "", gain, Path(), frozenset())

    small, large, chosen = planned(10.0, 0.2), planned(100.0, 0.9), planned(2.0, 0.0)
    assert sorted([chosen, large, small], key=lambda row: row.rank) == [small, large, chosen]
    figures = {"test": {"accuracy": 0.7}, "new_test": {"accuracy": 1.0}}
    text = table_of([small], {"gan": {"figures": figures}}, ("test", "new_test"))
    assert text.splitlines()[1].split() == ["10.0", "gan", ".527", "/", ".678", ".700", "/", "1.000"]


def test_a_report_is_compared_by_the_name_of_the_label_sets():
    """Ours on new_test is never beside the report's figure on test, whatever is asked for and in which order."""

    def row(**accuracies):
        figures = {name: {"accuracy": accuracy, "std": 0.0} for name, accuracy in accuracies.items()}
        return {"figures": figures, "steps": 2000}

    mine = {"gan": row(mine=0.1, new_test=0.6)}
    assert short_of("gan", mine["gan"], ("mine", "new_test")).startswith("short by 0.078 on new_test, after 2,000 of")
    assert short_of("gan", row(new_test=0.7, test=0.5), ("new_test", "test")).startswith("short by 0.000 / 0.027, ")
    assert short_of("gan", row(mine=0.1), ("mine",)) == ""
    planned = Planned("gan", 10.0, "", 0.0, Path(), frozenset())
    words = table_of([planned], mine, ("mine", "new_test")).splitlines()[1].split()
    assert words == ["10.0", "gan", ".678", ".100", "/", ".600"]


@pytest.mark.parametrize(("sets", "gain"), [("[mine,new_test]", 0.078), ("[mine]", 0.0), ("[new_test,test]", 0.052)])
def test_a_row_gains_only_where_its_report_has_a_figure(tmp_path, sets, gain):
    arguments = Namespace(config="configs/smoke.yaml", steps=None, overrides=[], fresh=False, only=[])
    config = load("configs/smoke.yaml", [f"root={tmp_path}", f"data.conditions={sets}"])
    context = Context(config, torch.device("cpu"), torch.float32, arguments, 0.0, ExitStack())
    figures = {"mine": {"accuracy": 0.1}, "new_test": {"accuracy": 0.6}, "test": {"accuracy": 0.5}}
    (row,) = Planner(context, homes_of(context)).of(["gan"], {"gan": {"figures": figures}})
    assert row.gain == pytest.approx(gain, abs=6e-4)
    if sets == "[new_test,test]":  # what is above the report on one set makes up for nothing on the other
        figures["test"]["accuracy"] = 0.9
        (row,) = Planner(context, homes_of(context)).of(["gan"], {"gan": {"figures": figures}})
        assert row.gain == pytest.approx(0.039, abs=6e-4)


def test_each_kind_of_features_has_its_floor(context, chain):
    """Rows of before and after the network for photographs was installed are on other features."""

    def row(features, distance):
        figures = {"frechet_distance": distance, "precision": 0.9, "recall": 0.8, "coverage": 0.7}
        figures |= {"features": features, "pictures": 300}
        return {"floor": figures, "quality": figures, "figures": {}, "real_accuracy": 0.99}

    from stages.engine.dataset import load_dataset

    dataset = load_dataset(load("configs/smoke.yaml", [f"root={chain}"]), torch.device("cpu"))
    results = {"ldm": row("photographs", 12.5), "gan": row("evaluator", 3.25), "ddpm-up": row("photographs", 12.5)}
    folder = write_page(context, results, dataset).parent
    text, page = (folder / "report.md").read_text(), (folder / "report.html").read_text()
    for features, distance in (("evaluator", "3.2"), ("photographs", "12.5")):
        assert text.count(f"the floor on features of {features}: Fréchet distance {distance},") == 1
        assert page.count(f"<small>features: {features}</small>") == 1


def test_minutes_are_steps_previews_and_network_calls(context, chain, tmp_path):
    from stages.engine.dataset import load_dataset

    dataset = load_dataset(load("configs/smoke.yaml", [f"root={chain}"]), torch.device("cpu"))
    homes = homes_of(context)
    home, row = homes["ldm"], row_of(context, "ldm", homes)
    found = estimate(row, home, "ldm", Pace(step=60.0, call=0.0), dataset)
    assert found.training == pytest.approx(6, abs=0.5)
    (home.folder("ldm")).mkdir(parents=True)
    (home.folder("ldm") / "step-00000004.ckpt").touch()
    assert newest_step(home, "ldm") == 4
    assert estimate(row, home, "ldm", Pace(60.0, 0.0), dataset).training == pytest.approx(2, abs=0.5)
    calls = row.config.eval.steps
    one = estimate(row, home, "ldm", Pace(0.0, 60.0), dataset).evaluation
    assert one >= 2 * 2 * calls  # two sets of one batch, by two seeds
    ancestral = row.derived(row.config.name, "eval.sampler=ancestral")
    many = estimate(ancestral, home, "ldm", Pace(0.0, 60.0), dataset).evaluation
    assert many == pytest.approx(one * row.config.ldm.timesteps / calls, rel=0.05)


def test_an_evaluation_draws_every_set_by_every_seed_and_what_quality_and_placing_need(context):
    changes = ("eval.batch=4", "eval.seeds=[0,1,2]", "eval.steps=5", "ldm.steps=6", "ldm.preview_every=3")
    row = context.derived("row", *changes)
    dataset = Namespace(test_sets={"test": range(5), "new_test": range(4)}, held_out_images=range(200))
    found = estimate(row, row, "ldm", Pace(step=0.0, call=60.0), dataset)
    assert found.training == pytest.approx(2 * 3 * 5 + START_UP), "two previews of three batches in five calls"
    pictures = 100 + 2 * 64  # a half of those held out, and placing by names and with places
    assert found.evaluation == pytest.approx((3 * 3 + pictures / 4) * 5 + START_UP)
    assert found.minutes == found.training + found.evaluation


def test_a_row_whose_configuration_is_not_valid_says_why(context):
    """Not a KeyError of the table of homes, in which it is missing."""
    impossible = context.derived(context.config.name, "gan.auxiliary=0", "gan.critic.condition=projection")
    homes = homes_of(impossible)
    assert "gan-auxiliary-placed" not in homes
    with pytest.raises(UserError, match="auxiliary"):
        row_of(impossible, "gan-auxiliary-placed", homes)


def test_choices_that_cost_nothing_share_a_timing(context, tmp_path, monkeypatch):
    timed = []

    def measured(home, model, dataset):
        timed.append(home.config.name)
        return Pace(1.0, 2.0)

    monkeypatch.setattr("stages.experiments.plan._measured", measured)
    homes = homes_of(context)
    paces = Paces(tmp_path / "timing.json", lambda: None)
    for key in (
        "ldm-schedule-linear",
        "ldm-schedule-sigmoid",
        "ldm-bound",
        "ldm-told-the-set",
        "ldm-told-the-set-apart",
    ):
        assert paces.of(homes[key], "ldm") == Pace(1.0, 2.0)
    assert len(timed) == 2  # the last two have another network
    assert Paces(tmp_path / "timing.json", lambda: None).of(homes["ldm-bound"], "ldm") == Pace(1.0, 2.0)
    assert len(timed) == 2


def test_the_difference_of_two_choices_has_a_standard_error():
    def row(accuracy):
        return {"figures": {"test": {"accuracy": accuracy}}, "steps": 6000}

    rows = {key: row(a) for key, a in zip(PAIRS[CHOICE][0], (0.5, 0.6, 0.7), strict=True)}
    assert differences_of(rows, ("test",)) == []
    rows |= {key: row(a) for key, a in zip(PAIRS[CHOICE][1], (0.4, 0.5, 0.6), strict=True)}
    (note,) = differences_of(rows, ("test",))
    assert "3 and 3 trainings: +0.100 ± 0.082" in note  # variances .01, .01: sqrt(.01 / 3 + .01 / 3)
    rows[PAIRS[CHOICE][1][2]]["steps"] = 600
    assert differences_of(rows, ("test",)) == [], "not trained alike"
    assert set(PAIRS[CHOICE][0] + PAIRS[CHOICE][1]) <= SYSTEMS.keys()


def test_another_training_seed_is_another_training(context):
    homes = homes_of(context)
    folders = {homes[key].export("ddpm") for key in PAIRS[CHOICE][1]}
    assert {homes[key].config.seed for key in PAIRS[CHOICE][1]} == {1, 2} and len(folders) == 2  # the smoke seed is 1


CHOICE = "conditions on both paths against the up path alone"


def test_the_page_sorts_by_report_and_accuracy_and_says_what_is_short(context, chain):
    def row(accuracy):
        return {"figures": {name: {"accuracy": accuracy} for name in ("test", "new_test")}, "steps": 2000}

    sets = ("test", "new_test")
    groups = ordered({"gan": row(0.5), "ldm": row(0.9), "ldm-guided": {"fault": "x"}}, sets)
    assert [*groups][:4] == ["The first report", "The second report", "The third report", "This project's own"]
    assert groups["The first report"] == [
        *("ldm", "gan", "ldm-guided", "ldm-told-the-set", "ldm-told-the-set-apart", "gan-pixels", "gan-projection"),
    ]
    assert {key for keys in groups.values() for key in keys} == SYSTEMS.keys()
    assert short_of("ldm", row(0.9), sets) == "reached"
    assert short_of("gan", row(0.5), sets) == "short by 0.027 / 0.178, after 2,000 of the report's 26,733 steps"
    tried = SYSTEMS["gan-auxiliary"].tried
    assert tried and short_of("gan-auxiliary", row(0.9), sets) == f"short by 0.072 / 0.000. {tried}"
    assert short_of("gan-attention", row(0.5), sets) == ""
    from stages.engine.dataset import load_dataset

    dataset = load_dataset(load("configs/smoke.yaml", [f"root={chain}"]), torch.device("cpu"))
    for name, place in shown_sets(dataset):
        counts = dataset.test_sets[name].labels.sum(1)
        assert counts[place] not in counts[:place]


def test_a_row_may_train_longer_than_its_section_says(context):
    key = "ldm-told-the-set"
    section = context.config.ldm
    assert SYSTEMS[key].longer == 3
    assert homes_of(context)[key].config.ldm.steps == 3 * section.steps
    for asked in (section.steps + 1, 3 * section.steps + 1):
        context.arguments.steps = asked
        assert homes_of(context)[key].config.ldm.steps == min(asked, 3 * section.steps)


def test_a_row_may_train_half_as_long_again(context):
    assert SYSTEMS["gan-auxiliary-placed"].longer == 1.5
    of_five = context.derived("odd", "gan.steps=5")
    assert homes_of(of_five)["gan-auxiliary-placed"].config.gan.steps == 8  # 7.5, a whole number of steps


def test_a_distilled_row_learns_from_the_model_of_its_teachers_row(context):
    homes = homes_of(context)
    assert homes["onestep"].config.name == "smoke", "the experiment has its section and its teacher"
    assert row_of(context, "onestep", homes).config.uses.items() >= {"ldm": "smoke", "onestep": "smoke"}.items()
    context.arguments.steps = 5  # fewer than the LDM's, more than the generator's
    homes = homes_of(context)
    assert homes["ldm"].config.name == "smoke-ldm" and homes["onestep"].config.name == "smoke-onestep"
    assert homes["onestep"].config.uses["ldm"] == row_of(context, "onestep", homes).config.uses["ldm"] == "smoke-ldm"


def test_an_experiment_without_a_generator_borrows_its_section_but_not_how_pairs_are_drawn(context):
    config = load("configs/smoke.yaml", [f"root={context.config.root}", "onestep=null", "eval.guidance=1.5"])
    lacking = replace(context, config=config)
    row = lacking.derived("row", *changes_of(lacking, "onestep")).config
    assert row.onestep == load("configs/onestep.yaml").onestep
    assert row.eval == config.eval
    assert homes_of(lacking)["onestep"].config.name == "smoke-onestep"


def test_what_a_row_is_distilled_from_comes_before_it():
    def planned(key, minutes, *more):
        return Planned(key, minutes, "", 0.0, Path(key), frozenset(map(Path, (key, *more))))

    rows = [planned("onestep", 1.0, "ldm"), planned("gan", 50.0), planned("ldm", 20.0), planned("ddpm", 5.0)]
    assert [row.key for row in in_order(rows)] == ["ddpm", "ldm", "onestep", "gan"]


def test_a_distilled_rows_minutes_have_its_teachers_and_its_pairs(context, chain, monkeypatch):
    from stages.engine.dataset import load_dataset

    monkeypatch.setattr("stages.experiments.plan._measured", lambda *asked: Pace(step=60.0, call=6.0))
    dataset = load_dataset(load("configs/smoke.yaml", [f"root={chain}"]), torch.device("cpu"))
    planner = Planner(context, homes_of(context))
    planner.dataset = planner.paces.dataset = lambda: dataset
    planner.shared = []  # as if evaluator and autoencoder were there: nothing but minutes is asked of them
    (alone,) = planner.of(["onestep"], {})
    first, after = planner.of(["onestep", "ldm"], {})
    assert (first.key, after.key) == ("ldm", "onestep") and first.model in after.folders
    assert alone.minutes - after.minutes == pytest.approx(6, abs=1.5)  # the teacher's steps and previews
    folder = planner.homes["onestep"].folder("onestep")
    folder.mkdir(parents=True)
    (folder / "step-00000000.ckpt").touch()
    assert planner.of(["onestep"], {})[0].minutes == pytest.approx(alone.minutes)
    (folder / "step-00000002.ckpt").touch()  # two of four steps are done, and so are the pairs
    (begun,) = planner.of(["onestep"], {})
    assert begun.state == "at step 2 of 4"
    assert alone.minutes - begun.minutes == pytest.approx(2 + 3 * 6 / 60)  # one batch of pairs, in three steps


def test_the_one_step_row_is_planned_trained_after_its_teacher_and_shown(roots, capsys):
    root, _ = roots
    asked = {"config": "configs/smoke.yaml", "steps": None, "overrides": [], "fresh": False, "only": ["onestep"]}
    arguments = Namespace(**asked, row=False, plan=True, jobs=1, hours=None)
    config = load("configs/smoke.yaml", [f"root={root}", "eval.seeds=[0]"])
    with ExitStack() as held:
        context = Context(config, torch.device("cpu"), torch.float32, arguments, 0.0, held)
        main(context)
        assert "1 of 1 rows to run" in (said := capsys.readouterr().out) and "cannot be timed" not in said
        assert not (root / "smoke/ldm").exists() and not (root / "smoke/onestep").exists()
        homes = homes_of(context)
        found = run(context, "onestep", homes)
        planner = Planner(context, homes)
        write_page(context, {"onestep": found}, planner.dataset())
        assert planner.finished("onestep", {"onestep": found})
        assert not planner.finished("onestep", {"onestep": found | {"settings": ["ldm.steps=9"]}}), "by an older recipe"
        assert found["figures"].keys() >= {"test", "new_test"} and "trained with places" in found["system"]
        teacher = root / "smoke/ldm/export.safetensors"
        made_from = load_export(root / "smoke/onestep/export.safetensors", "")[1]["parents"]["ldm"]
        assert made_from == digest(teacher.parent)
        page = (root / "reproduce/report.md").read_text()
        assert "one-step generator distilled from the LDM (trained with places" in page
        tensors, about = load_export(teacher, "")
        tensors["leave.2.bias"] = tensors["leave.2.bias"] + 1
        del about["sha256"]
        save_export(teacher, tensors, about)
        assert not planner.finished("onestep", {"onestep": found}), "it learned from another LDM"
