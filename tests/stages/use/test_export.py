"""What `make export` writes gives what the trained networks give: in torch, in onnxruntime, and drawn without torch."""

import json
import re
import runpy
import socket
import subprocess
import sys
from argparse import Namespace
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from models.condition import Condition, unknown_turns
from models.layouts import LayoutPrior
from stages.engine.command import context_of
from stages.engine.config import load
from stages.engine.draws import sample_generator
from stages.engine.errors import UserError
from stages.engine.export import load_export
from stages.engine.files import made_whole
from stages.gan import load_gan
from stages.judge import load_evaluator
from stages.ldm import load_sampler
from stages.use.find import FIGURES
from stages.vae import load_vae
from tests.conftest import HERE, SMOKE, start_stage
from tests.helpers import assert_one_line, of_all_workers
from tests.stages.handful import context_with
from tests.stages.use.exported import (
    SIZES,
    Folder,
    _layouts_of,
    add_model,
    drawn_by_the_script,
    drawn_inputs,
    graphs,
    hub,
    huggingface_hub,
    onnx,
    session,
)

HOW = ("eval.steps=10", "eval.guidance=3.0", "eval.interval=[0.4,0.9]", "precision=float32")


@pytest.fixture(scope="session")
def exported(chain, tmp_path_factory):
    """The folder that `stages.use.export` writes for the smoke chain. Made once, for all of pytest's workers."""
    with of_all_workers(tmp_path_factory, "exported") as folder:
        if not folder.exists():
            process = start_stage("export", "--out", str(folder), f"root={chain}", *HOW)
            out, err = process.communicate(timeout=550)
            assert (process.returncode, out) == (0, f"{folder}\n"), err
    return folder


@pytest.fixture(scope="module")
def trained(chain):
    """The chain's networks by stage, as the stages load them."""
    with ExitStack() as held:
        context = context_of(load(SMOKE, [f"root={chain}", *HOW]), Namespace(config=SMOKE), 0.0, held)
        return {
            "evaluator": load_evaluator(context, 24)[0],
            "vae": load_vae(context)[0],
            "ldm": load_sampler(context)[0].network,
            "gan": load_gan(context)[0].generator,
        }


@pytest.fixture
def offline(monkeypatch):
    def refused(*arguments):
        raise AssertionError("a connection was asked for")

    monkeypatch.setattr(socket.socket, "connect", refused)


def test_the_folder_holds_what_the_page_says(exported):
    for stage, graph in {"evaluator": "evaluator", "vae": "decoder", "ldm": "denoiser", "gan": "generator"}.items():
        names = {path.name for path in (exported / stage).iterdir()}
        assert {"README.md", "config.json", "model.safetensors", f"{graph}.onnx"} <= names
        assert f"`{graph}.onnx`" in (exported / stage / "README.md").read_text()
        assert f"{stage}/{graph}.onnx" in (exported / "README.md").read_text()
    assert not list(exported.parent.glob(".exported.*.tmp"))


def test_a_card_is_one_of_the_hub_with_the_figures_of_the_report(exported, chain):
    card = huggingface_hub.ModelCard.load(exported / "ldm" / "README.md")
    assert card.data.library_name == "iclevr-latent-diffusion" and card.data.license == "mit"
    report = json.loads((chain / "smoke/eval/report.json").read_text())
    assert f"{report['results']['ldm']['new_test']['accuracy']:.3f} ±" in card.text
    assert report["provenance"]["parents"]["ldm"] in card.text and "over 2 sampling seeds" in card.text


def test_a_card_shows_a_releases_figures_if_they_are_of_its_weights(tmp_path):
    folder = Folder(tmp_path, context_with(f"root={tmp_path}"), ["red cube"])
    (tmp_path / "smoke").mkdir()
    sets = {"test": {"accuracy": 0.75, "std": 0.125}}
    of = {"export": "a", "measured": "before", "seeds": 20, "sets": sets}
    (tmp_path / "smoke" / FIGURES).write_text(json.dumps({"ldm": of, "vae": of | {"measured": "a"}}))
    assert folder._figures("vae", {"sha256": "a"})[1] == "over 20 sampling seeds, by `make eval`"
    figures, measured = folder._figures("ldm", {"sha256": "a"})
    assert figures == {"test": "0.750 ± 0.125"}
    assert measured == "over 20 sampling seeds, by `make eval`, before rounding to 16 bits"
    for stage, sha256 in (("ldm", "another"), ("gan", "a")):
        assert folder._figures(stage, {"sha256": sha256}) == ({}, "")
    for damaged in ("{", "[]", '{"ldm": 3}', '{"ldm": {"export": "a"}}'):
        (tmp_path / "smoke" / FIGURES).write_text(damaged)
        assert folder._figures("ldm", {"sha256": "a"}) == ({}, "")


def test_a_card_shows_the_figures_of_the_experiment_that_a_model_is_taken_from(tmp_path):
    folder = Folder(tmp_path, context_with(f"root={tmp_path}", "uses={ldm: other}"), ["red cube"])
    (tmp_path / "other" / "eval").mkdir(parents=True)
    sets = {"test": {"accuracy": 0.75, "std": 0.125}}
    provenance = {"parents": {"ldm": "a", "gan": "b"}, "seeds": [0, 1]}
    report = {"results": {"ldm": sets, "gan": sets}, "provenance": provenance}
    (tmp_path / "other" / "eval" / "report.json").write_text(json.dumps(report))
    found = ({"test": "0.750 ± 0.125"}, "over 2 sampling seeds, by `make eval`")
    assert folder._figures("ldm", {"sha256": "a"}) == found
    assert folder._figures("ldm", {"sha256": "another"}) == ({}, "")
    assert folder._figures("gan", {"sha256": "b"}) == ({}, "")  # this experiment's own, which has no report


@pytest.mark.parametrize("stage", ["evaluator", "vae", "ldm", "gan"])
def test_a_network_loads_from_its_folder_and_is_the_one_that_was_trained(exported, trained, offline, stage, tmp_path):
    found = hub.Exported.from_pretrained(exported / stage)
    assert not found.training and len(found.objects) == 24 and found.size == 64
    weights, expected = load_file(exported / stage / "model.safetensors"), trained[stage].state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in weights)
    x, t, objects, places, keep = drawn_inputs(2, 3)
    condition, pictures = Condition(objects, places, unknown_turns(objects), 24), torch.rand(2, 3, 64, 64) * 2 - 1
    inputs = {"evaluator": (pictures,), "vae": (pictures,), "ldm": (x, t, condition, keep)}
    with torch.no_grad():
        inputs = inputs.get(stage) or (torch.randn(2, trained["gan"].noise), condition)
        ours, theirs = trained[stage](*inputs), found(*inputs)
    if stage == "vae":
        ours, theirs = ours[0], theirs[0]
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)  # in another order of memory

    found.save_pretrained(tmp_path)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / name).read_bytes() == (exported / stage / name).read_bytes()


def test_weights_of_another_network_are_refused(exported, tmp_path):
    (tmp_path / "config.json").write_bytes((exported / "vae" / "config.json").read_bytes())
    weights = load_file(exported / "vae" / "model.safetensors")
    del weights["latent_std"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(RuntimeError, match="latent_std"):
        hub.Exported.from_pretrained(tmp_path)


@pytest.mark.parametrize("bits", [torch.bfloat16, torch.float16])
def test_sixteen_bit_weights_are_written_as_float32(chain, bits):
    tensors, about = load_export(chain / "smoke/vae/export.safetensors", "")
    rounded = {k: v.to(bits) if v.is_floating_point() else v for k, v in tensors.items()}
    network = hub.of_trained("vae", Namespace(state_dict=lambda: rounded), about, ["red cube"])
    found = network.state_dict()
    assert found["latent_std"].dtype == torch.float32
    assert torch.equal(found["latent_std"], tensors["latent_std"].to(bits).float())


def test_an_export_older_than_a_key_gets_its_default(chain):
    tensors, about = load_export(chain / "smoke/vae/export.safetensors", "")
    del about["size"], about["config"]["decodes"]
    found = hub.of_trained("vae", Namespace(state_dict=lambda: tensors), about, ["red cube"])
    assert found.size == 64 and found.network.decodes_codes


@pytest.mark.parametrize(("rows", "slots"), SIZES)
def test_the_denoiser_in_onnxruntime_is_torchs(exported, trained, rows, slots):
    x, t, objects, places, keep = drawn_inputs(rows, slots)
    with torch.no_grad():
        told, untold = (
            trained["ldm"](x, t, Condition(objects, places, unknown_turns(objects), 24), k) for k in (~keep, keep)
        )
    graph = session(exported / "ldm/denoiser.onnx")
    inputs = {"x": x, "t": t, "objects": objects, "places": places}
    inputs = {name: value.numpy() for name, value in inputs.items()}
    for k, expected in ((~keep, told), (keep, untold)):
        (found,) = graph.run(None, inputs | {"keep": k.numpy()})
        np.testing.assert_allclose(found, expected, atol=1e-3)
    assert (told - untold).abs().max() > 1e-2  # the condition counts


@pytest.mark.parametrize(("rows", "slots"), SIZES)
def test_decoder_generator_and_evaluator_in_onnxruntime_are_torchs(exported, trained, rows, slots):
    x, _, objects, places, _ = drawn_inputs(rows, slots)
    noise, pictures = torch.randn(rows, trained["gan"].noise), torch.rand(rows, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        made = trained["gan"](noise, Condition(objects, places, unknown_turns(objects), 24))
        expected = {
            "vae/decoder": trained["vae"].decode(x).clamp(-1, 1),
            "gan/generator": torch.nn.functional.pixel_shuffle(made, 2).clamp(-1, 1),
            "evaluator/evaluator": trained["evaluator"].logits(pictures),
        }
    inputs = {"x": x, "noise": noise, "objects": objects, "places": places, "pictures": pictures}
    for name, ours in expected.items():
        graph = session(exported / f"{name}.onnx")
        (found,) = graph.run(None, {i.name: inputs[i.name].numpy() for i in graph.get_inputs()})
        np.testing.assert_allclose(found, ours, atol=1e-3, err_msg=name)


def test_the_opset_is_the_one_stated(exported):
    for path in exported.rglob("*.onnx"):
        assert {o.domain: o.version for o in onnx.load(path).opset_import}[""] == graphs.OPSET
    assert json.loads((exported / "config.json").read_text())["opset"] == graphs.OPSET == 18


def test_the_picture_without_torch_is_that_of_make_sample(exported, stage, chain, tmp_path):
    """For the same noise, objects and places: ten steps of DDIM, guided in part of them."""
    out, labels = tmp_path / "x.png", "red cube at 0.3 0.6, cyan sphere at 0.7 0.5"
    status, said = stage("sample", "--labels", labels, "--count", "1", "--out", str(out), f"root={chain}", *HOW)
    assert status == 0, said
    sampled = np.asarray(Image.open(out))[0:128:2, 0:128:2].astype(int)  # each pixel is shown as 2x2, in a margin

    script, config = runpy.run_path(str(exported / "draw.py")), json.loads((exported / "config.json").read_text())
    model = config["models"]["ldm"]
    assert len(model["steps"]) == 10 and {guidance for _, guidance, *_ in model["steps"]} == {1.0, 3.0}
    objects = np.array([[config["objects"].index(name) for name in ("red cube", "cyan sphere")]])
    places = np.array([[[0.3, 0.6], [0.7, 0.5]]], np.float32)
    noise = torch.randn(6, 8, 8, generator=sample_generator(0, "sample", 0))[None].numpy()
    picture = script["draw"](model, noise, objects=objects, places=places)
    (tmp_path / "y.png").write_bytes(script["png"](picture[0]))
    drawn = np.asarray(Image.open(tmp_path / "y.png")).astype(int)
    assert drawn.shape == (64, 64, 3)
    assert np.abs(drawn - sampled).max() <= 1


def test_the_page_s_program_draws_the_script_s_picture(exported, tmp_path):
    page = (HERE / "docs/exports.md").read_text()
    (program,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "denoiser.run" in block)
    assert len(program.splitlines()) <= 40
    program = program.replace("exports/scenes/", f"{exported}/").replace("drawn.ppm", f"{tmp_path}/x.ppm")
    code = f"import sys; sys.modules['torch'] = None\n{program}"
    subprocess.run([sys.executable, "-I", "-c", code], cwd="/", check=True, timeout=300)
    asked = "red cube at 0.3 0.6, cyan sphere at 0.7 0.5"
    result = drawn_by_the_script(exported, asked, "--model", "ldm", "--out", str(tmp_path / "y.png"))
    assert result.returncode == 0, result.stderr
    drawn, of_script = (np.asarray(Image.open(tmp_path / name)).astype(int) for name in ("x.ppm", "y.png"))
    assert drawn.shape == (64, 64, 3) and drawn.std() > 1
    assert np.abs(drawn - of_script).max() <= 1


@pytest.mark.parametrize(("model", "labels"), [("ldm", "red cube at 0.3 0.6, cyan sphere"), ("gan", "red cube")])
def test_the_script_draws_alone(exported, tmp_path, model, labels):
    result = drawn_by_the_script(exported, labels, "--model", model, "--out", str(tmp_path / "x.png"))
    assert result.returncode == 0, result.stderr
    assert Image.open(tmp_path / "x.png").size == (64, 64)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("pink cube",), "unknown object 'pink cube'"),
        (("red cube at 0.3 0.6", "--model", "gan"), "gan takes no places"),
        (("red cube, cyan cube, blue cube, gray cube",), "write a place for each"),
        (("red cube, Red  cube",), "'red cube' appears twice"),
        (("red cube at 0.3",), "'0.3' is not a place"),
        (("red cube at x 0.6",), "'x 0.6' is not a place"),
        (("red cube at 0.3 1.6",), "'0.3 1.6' is not a place"),
        (("red cube at nan 0.6",), "'nan 0.6' is not a place"),
        (("red cube", "--seed", "-1"), "--seed -1"),
        (("red cube", "--out", "nowhere/x.png"), "--out nowhere/x.png: No such file"),
    ],
)
def test_what_the_script_cannot_draw_is_one_line(exported, arguments, words):
    result = drawn_by_the_script(exported, *arguments)
    assert result.returncode == 2 and words in result.stderr and "Traceback" not in result.stderr


def test_without_a_trained_model_one_line_says_what_to_run(stage, tmp_path):
    out = tmp_path / "out"
    assert_one_line(*stage("export", "--out", str(out), f"root={tmp_path}"), "is missing: run `make ldm CONFIG=")
    assert not out.exists()


def test_a_model_without_a_graph_is_left_out_with_a_line(capsys):
    assert add_model(None, None, "another", object(), {}, None) is None
    assert "another is left out" in capsys.readouterr().err


def test_the_layouts_that_are_written_are_those_that_a_sampling_chooses_from():
    near, far = [(0.1, 0.1), (0.2, 0.1)], [(0.1, 0.1), (0.9, 0.9)]
    sampler = Namespace(takes_places=True, layouts=LayoutPrior({2: torch.tensor([near, far])}))
    assert torch.equal(_layouts_of(sampler, context_with("eval.apart=0.3")).layouts[2], torch.tensor([far]))
    assert len(_layouts_of(sampler, context_with()).layouts[2]) == 2
    assert _layouts_of(sampler, context_with("eval.places=unknown")) is None
    assert _layouts_of(Namespace(takes_places=False, layouts=sampler.layouts), context_with()) is None


def test_a_failure_leaves_no_folder(tmp_path):
    for error, raised in ((KeyError(), KeyError), (SafetensorError("No space left"), UserError)):
        with pytest.raises(raised), made_whole(tmp_path / "a" / "b") as folder:
            (folder / "half").write_text("")
            raise error
        assert not list((tmp_path / "a").iterdir())


def test_a_folder_with_something_in_it_is_left_alone(stage, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    assert_one_line(*stage("export", "--out", str(tmp_path)), "is not an empty folder")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
