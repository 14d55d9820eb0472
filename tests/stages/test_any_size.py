"""Pictures of other sizes than 64: the whole chain through the commands, and what does not fit in one line."""

import json
import shutil

import pytest
from PIL import Image

from models.evaluator import Evaluator
from models.sizes import CELL
from stages.engine.export import load_export, read_about, save_export
from stages.engine.log import read_metrics
from tests.conftest import ask_for_few
from tests.data.folder import write_folder
from tests.helpers import assert_one_line
from tests.stages.handful import context_with

STAGES = ("render", "evaluator", "reader", "vae", "ldm", "gan", "evaluate")
FEW = (
    *("render.scenes=9", "render.validation_scenes=2", "render.samples=1"),
    *("eval.seeds=[0]", "eval.steps=2", "eval.batch=8"),
    *("evaluator.steps=1", "evaluator.batch=4", "evaluator.checkpoint_every=9", "reader.steps=1", "reader.batch=4"),
    *("vae.steps=4", "vae.batch=4", "ldm.steps=1", "ldm.batch=4", "gan.steps=1", "gan.batch=4"),
)


@pytest.fixture(scope="module", params=[32, 128])
def made(request, tmp_path_factory):
    """Returns a root folder for the chain at one size, and the size."""
    return tmp_path_factory.mktemp("sized"), request.param


SETS = {32: ["test", "new_test"], 128: ["few"]}  # the larger chain is asked for label sets of its own


def test_the_whole_chain_runs_at_another_size_and_with_other_label_sets(stage, made):
    root, size = made
    sets = SETS[size]
    arguments = (f"root={root}", f"data.size={size}", f"data.conditions={json.dumps(sets)}", *FEW)
    for name in STAGES:
        status, said = stage(name, *arguments)
        assert status == 0, f"{name}: {said}"
        if name == "render":
            ask_for_few(root / "smoke/render", 8)
            (root / "smoke/render/few.json").write_text(json.dumps([["red cube"], ["gray sphere", "blue cube"]] * 4))
    folder = root / "smoke"
    assert Image.open(next((folder / "render/iclevr").glob("*_0.png"))).size == (size, size), "drawn, not scaled"
    for name in STAGES[1:-1]:
        assert read_about(folder / name / "export.safetensors", "")["size"] == size
    (pack,) = (root / "packs").glob("*.safetensors")
    assert load_export(pack, "")[0]["images"].shape[1:] == (3, size, size)
    scale = max(1, 128 // size)
    for file in (f"ldm-{sets[0]}", f"gan-{sets[-1]}"):
        assert Image.open(folder / f"eval/{file}.png").width == 8 * (size + 2) * scale
    page = (folder / "eval/report.html").read_text()
    assert f"{size}×{size} scenes" in page
    report = json.loads((folder / "eval/report.json").read_text())
    for model in ("ldm", "gan"):
        assert [*report["results"][model]] == [*sets, "held_out"]
        measured = [line for line in read_metrics(folder / model / "metrics.jsonl") if f"accuracy_{sets[0]}" in line]
        assert measured and all(f"accuracy_{name}" in measured[-1] for name in sets)
    said = (folder / "eval/report.md").read_text()
    assert ("new_test" in page, "new_test" in said) == ("new_test" in sets,) * 2
    assert all(f"<th>{name}</th>" in page and f"ldm-{name}.png" in said for name in sets)
    for name, *more in (("placed", "--labels", "red cube"), ("places",), ("progress",)):
        status, said = stage(name, *arguments, *more)
        assert status == 0, f"{name}: {said}"
    out = root / "x.png"
    status, said = stage("sample", *arguments, "--labels", "red cube", "--count", "1", "--out", str(out))
    assert status == 0, said
    assert Image.open(out).size == ((size + 2) * scale,) * 2


@pytest.mark.parametrize("command", [*STAGES, "sample"])
def test_what_is_of_another_size_than_the_data_is_refused_in_one_line(stage, made, command):
    """Each command at 64 names what was made at another size, and changes nothing."""
    root, size = made
    more = ("--labels", "red cube", "--out", str(root / "y.png")) if command == "sample" else ()
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.suffix in (".safetensors", ".json")}
    status, said = stage(command, f"root={root}", *FEW, *more)
    words = ["other scenes", f"size: {size} -> 64"] if command == "render" else [f"{size}x{size}", f"data.size={size}"]
    assert_one_line(status, said, *words)
    kept = {path: time for path, time in before.items() if path.is_file() and path.stat().st_mtime_ns == time}
    assert kept == before


def test_an_export_of_before_other_sizes_is_of_64(stage, tmp_path):
    """A judge without a size serves pictures of 64 and no others."""
    save_export(tmp_path / "judge/evaluator/export.safetensors", Evaluator(24).state_dict(), {})
    data = write_folder(tmp_path / "data")
    arguments = (f"root={tmp_path}", f"data.folder={data}", "data.validation_every=2", "uses.evaluator=judge", *FEW)
    assert stage("gan", *arguments)[0] == 0
    assert_one_line(
        *stage("gan", *arguments, "name=other", "data.size=32"), "is of 64x64 pictures, but data.size is 32"
    )


def test_scenes_that_were_drawn_smaller_are_not_enlarged(stage, tmp_path):
    folder = write_folder(tmp_path / "smoke/render")
    (folder / "render.json").write_text(json.dumps({"size": 64}))
    arguments = (f"root={tmp_path}", "data.size=128", *FEW)
    assert_one_line(*stage("evaluator", *arguments), "drawn at 64x64", "data.size=128", "data.size=64")
    shutil.rmtree(folder)
    assert_one_line(*stage("render", *arguments, "render.size=64"), "render.size (64) is below data.size (128)")


def test_scenes_that_are_drawn_larger_say_so(stage, tmp_path):
    arguments = (f"root={tmp_path}", "data.size=32", "render.size=64", "render.scenes=1", "render.validation_scenes=1")
    status, said = stage("render", *arguments)
    assert status == 0 and "drawn at 64x64; packing shrinks them to data.size=32" in said
    assert Image.open(next((tmp_path / "smoke/render/iclevr").glob("*_0.png"))).size == (64, 64)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        (["data.size=48"], ["data.size", "32, 64, 128 or 256"]),
        (["data.size=32", "ldm.network.multipliers=[1,1,1,1]"], ["multipliers", "at most 3", "4x4 to 1x1"]),
        (["data.size=32", "vae.discriminator.layers=4"], ["vae.discriminator.layers", "32x32"]),
        (["vae.discriminator.layers=4", "vae.windows_until=5", "vae.label_weight=0"], ["layers", "32x32"]),
        (["data.size=128", "vae.channels=[8,8]"], ["vae.channels", "128 -> 64 -> 32 -> 16"]),
        (["data.size=128", "evaluator.checkpoint=lab.pth"], ["evaluator.checkpoint", "64x64"]),
    ],
)
def test_settings_that_do_not_fit_a_size_are_one_line(stage, changes, parts):
    assert_one_line(*stage("vae", "--check", *changes), *parts)


def test_larger_pictures_allow_more_multipliers():
    context = context_with("data.size=128", "ldm.network.multipliers=[1,1,1,1,1]")
    assert 2 ** (len(context.config.ldm.network.multipliers) - 1) == 128 // CELL
