"""What `make export` writes of a one-step generator gives what the trained one gives, by one call.

Its teacher is told how objects are turned, and so is the generator.
"""

import json
import runpy
from argparse import Namespace
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from models.condition import Condition
from stages.engine.draws import sample_generator
from stages.ldm import main as train_ldm
from stages.onestep import load_onestep
from tests.helpers import of_all_workers
from tests.stages.distilled import context_of as beside_the_chain
from tests.stages.distilled import distil
from tests.stages.use.exported import SIZES, drawn_by_the_script, drawn_inputs, hub, huggingface_hub, session

LABELS = "red cube at 0.3 0.6, cyan sphere at 0.7 0.5"
HOW = ("models=[onestep]", "eval.guidance=3.0", "eval.steps=2", "eval.spacing=uniform")
TURNED = ("ldm.network.places=true", "ldm.network.turns=true", "ldm.steps=1")


def context_of(root, *changes):
    return beside_the_chain(root, "uses.ldm=turned", *changes)


def turns_of(rows, slots):
    """How objects are turned, the last one unknown."""
    turns = torch.rand(rows, slots, generator=torch.Generator().manual_seed(rows))
    turns[-1, -1] = -1.0
    return turns


@pytest.fixture(scope="session")
def root(chain, tmp_path_factory):
    """A root with a generator, and in `out` the export of an experiment whose only model it is.

    The export must not heed that experiment's `eval`. Made once, for all of pytest's workers.
    """
    from stages.use.export import main as export  # after what skips

    with of_all_workers(tmp_path_factory, "one-call") as root:
        if not (root / "out").exists():
            root.mkdir()
            for name in ("smoke", "packs"):
                (root / name).symlink_to(chain / name)
            teacher = beside_the_chain(root, "uses={evaluator: smoke, vae: smoke}", *TURNED, name="turned")
            with teacher.held:
                train_ldm(teacher)
            distil(context_of(root))
            context = context_of(root, *HOW)
            export(replace(context, arguments=Namespace(config="configs/smoke.yaml", out=str(root / "out"))))
    return root


@pytest.fixture(scope="session")
def exported(root):
    return root / "out"


def test_it_has_a_card_and_is_built_as_its_teacher_is(exported, root):
    network, about = load_onestep(context_of(root))[0].sampler.network, load_onestep(context_of(root))[1]
    found = hub.Exported.from_pretrained(exported / "onestep")
    assert found.network.state_dict().keys() == network.state_dict().keys()
    assert all(torch.equal(weights, network.state_dict()[k]) for k, weights in found.network.state_dict().items())
    x, t, objects, places, keep = drawn_inputs(2, 3)
    with torch.no_grad():
        ours, theirs = (net(x, t, Condition(objects, places, turns_of(2, 3), 24), keep) for net in (network, found))
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)
    built = json.loads((exported / "onestep/config.json").read_text())
    assert built["settings"]["network"] == about["teacher"]["config"]["network"] and len(built["objects"]) == 24
    card = huggingface_hub.ModelCard.load(exported / "onestep" / "README.md")
    assert "One-step LDM" in card.text and about["parents"]["ldm"][:12] in card.text
    assert "eval.steps=3 |" in card.text, "how its pairs were drawn"
    for name in ("denoiser.onnx", "layouts.npz", "scheduler/scheduler_config.json"):
        assert (exported / "onestep" / name).is_file() and f"`{name}`" in card.text
    assert (exported / "vae/decoder.onnx").is_file() and not (exported / "ldm").exists()


@pytest.mark.parametrize(("rows", "slots"), SIZES)
def test_its_denoiser_in_onnxruntime_is_torchs(exported, root, rows, slots):
    network = load_onestep(context_of(root))[0].sampler.network
    x, t, objects, places, keep = drawn_inputs(rows, slots)
    with torch.no_grad():
        expected = network(x, t, Condition(objects, places, turns_of(rows, slots), 24), ~keep)
    inputs = {"x": x, "t": t, "objects": objects, "places": places, "keep": ~keep, "turns": turns_of(rows, slots)}
    (found,) = session(exported / "onestep/denoiser.onnx").run(None, {k: v.numpy() for k, v in inputs.items()})
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_its_picture_without_torch_is_that_of_make_sample(exported, root, stage, tmp_path):
    out = tmp_path / "x.png"
    uses = ("uses={evaluator: smoke, vae: smoke, ldm: turned}", f"data.folder={root}/smoke/render")
    settings = (f"root={root}", "name=pupil", *uses, "models=[onestep]", "precision=float32")
    status, said = stage("sample", "--labels", LABELS, "--count", "1", "--out", str(out), *settings)
    assert status == 0, said
    sampled = np.asarray(Image.open(out))[0:128:2, 0:128:2].astype(int)  # each pixel is shown as 2x2, in a margin

    script, config = runpy.run_path(str(exported / "draw.py")), json.loads((exported / "config.json").read_text())
    model = config["models"]["onestep"]
    assert [step[:2] for step in model["steps"]] == [[99, 1.0]] and model["takes_places"] and model["takes_turns"]
    objects = np.array([[config["objects"].index(name) for name in ("red cube", "cyan sphere")]])
    noise = torch.randn(6, 8, 8, generator=sample_generator(0, "sample", 0))[None].numpy()
    places = np.array([[[0.3, 0.6], [0.7, 0.5]]], np.float32)
    turns = torch.rand(2, generator=sample_generator(0, "sample", 0, "turns"))[None].numpy()
    picture = script["draw"](model, noise, objects=objects, places=places, turns=turns)
    (tmp_path / "y.png").write_bytes(script["png"](picture[0]))
    drawn = np.asarray(Image.open(tmp_path / "y.png")).astype(int)
    assert drawn.std() > 0 and np.abs(drawn - sampled).max() <= 1


def test_the_script_draws_it_alone(exported, tmp_path):
    for labels in (LABELS, "red cube"):  # with places, and with those of a training layout
        out = tmp_path / f"{len(labels)}.png"
        result = drawn_by_the_script(exported, labels, "--model", "onestep", "--out", str(out))
        assert result.returncode == 0, result.stderr
        assert Image.open(out).size == (64, 64)
