"""The library draws what the command draws, from any thread, and leaves the process as it found it."""

import io
import json
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from data.labels import CLEVR
from models.condition import Condition
from models.evaluator import top_k_hits
from stages import UserError, load
from stages.judge import scores
from stages.models import MODELS
from tests.conftest import HERE, SMOKE

ASKED = "red cube, cyan sphere"

# run in a process of its own: what anything could have changed, before and after
WATCHED = """
import json, os, random, signal, sys, threading, warnings
def of_process():
    handlers = {n.name: str(signal.getsignal(n)) for n in signal.Signals if n not in (signal.SIGKILL, signal.SIGSTOP)}
    hooks = [sys.excepthook, threading.excepthook, sys.stdout, sys.stderr, sys.displayhook]
    return {"handlers": handlers, "environment": dict(os.environ), "hooks": list(map(repr, hooks)),
            "arguments": list(sys.argv), "folder": os.getcwd(), "random": repr(random.getstate()),
            "threads": [t.name for t in threading.enumerate()]}
def of_torch():
    b = torch.backends
    flags = [torch.get_float32_matmul_precision(), torch.get_default_dtype(), torch.is_grad_enabled(),
             torch.are_deterministic_algorithms_enabled(), b.cudnn.allow_tf32, b.cudnn.benchmark,
             b.cudnn.deterministic, b.cuda.matmul.allow_tf32, b.mkldnn.enabled, torch.get_default_device()]
    return {"flags": list(map(str, flags)), "torch": torch.get_rng_state().tolist(),
            "threads of torch": [torch.get_num_threads(), torch.get_num_interop_threads()],
            "numpy": repr(numpy.random.get_state())}
first = of_process()
import stages
assert "torch" not in sys.modules and "numpy" not in sys.modules, "importing stages is free"
from models.quantizer import QUANTIZERS
QUANTIZERS["fsq"](6, levels=7)
assert "vector_quantize_pytorch" not in sys.modules, "finite scalars need no library"
import numpy, torch
torch.set_float32_matmul_precision("medium")
second = of_torch()
from stages import load
model = load(sys.argv[1])
for name in model.models:
    pictures = model.draw("red cube, cyan sphere", count=2, model=name, on_step=lambda *found: None)
model.denoising("red cube")
model.judge(pictures, "red cube, cyan sphere")
try:
    model.draw("pink cube")
except stages.UserError:
    pass
last = of_process() | of_torch()
changed = [key for key, value in (first | second).items() if last[key] != value]
slow = {"matplotlib", "tensorboard", "mitsuba", "lpips"} & set(sys.modules)
print(json.dumps({"changed": changed, "slow": sorted(slow), "models": model.models}))
"""


@pytest.fixture(scope="module")
def experiment(chain):
    return load(chain / "smoke")


def bits(pictures):
    return [picture.tobytes() for picture in pictures]


def test_nothing_in_the_process_changes(chain):
    command = [sys.executable, "-c", WATCHED, str(chain / "smoke")]
    result = subprocess.run(command, cwd=HERE, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    (line,) = result.stdout.splitlines()  # the library prints nothing
    assert json.loads(line) == {"changed": [], "slow": [], "models": ["ldm", "gan"]}


@pytest.mark.parametrize("model", ["ldm", "gan"])
def test_the_bits_are_those_of_the_command(stage, chain, experiment, tmp_path, model):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    shown = ("--labels", ASKED, "--model", model, "--count", "3", "--seed", "4")
    assert stage("sample", *shown, "--out", str(tmp_path / "a"), f"root={chain}")[0] == 0
    files = [Image.open(tmp_path / f"a/{i:02}.png") for i in range(3)]
    drawn = experiment.draw(ASKED, count=3, seed=4, model=model)
    assert bits(drawn) == bits(files)
    assert bits(drawn) != bits(experiment.draw(ASKED, count=3, seed=5, model=model))
    tensor = experiment.sample(ASKED, count=3, seed=4, model=model)
    assert tensor.shape == (3, 3, 64, 64) and tensor.abs().max() <= 1


def test_two_threads_at_once_draw_what_one_after_the_other_does(chain, experiment):
    """Of an experiment that no thread has used yet: they share its loading too."""
    jobs = [("ldm", 1), ("gan", 2), ("ldm", 3), ("gan", 4)]
    wanted = {job: bits(experiment.draw(ASKED, count=2, model=job[0], seed=job[1])) for job in jobs}
    shared, together, found = load(chain / "smoke"), threading.Barrier(len(jobs)), {}

    def draw(model, seed):
        together.wait(60)
        found[model, seed] = bits(shared.draw(ASKED, count=2, model=model, seed=seed))

    threads = [threading.Thread(target=draw, args=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == wanted


def test_each_step_is_told_and_what_it_raises_ends_the_drawing(experiment):
    told = []
    drawn = experiment.draw(ASKED, count=9, on_step=lambda *step: told.append(step))
    assert [(step, of, len(pictures)) for step, of, pictures in told] == [
        *((step, 6, 8) for step in (1, 2, 3)),
        *((step, 6, 1) for step in (4, 5, 6)),
    ]
    assert bits(told[2][2] + told[5][2]) == bits(drawn)
    first = experiment.denoising(ASKED, count=8)[0]
    assert bits(told[0][2]) == bits(first.predicted) != bits(first.x)
    experiment.draw(ASKED, count=2, model="gan", on_step=lambda *step: told.append(step))
    assert told[-1][:2] == (1, 1)

    def enough(*step):
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        experiment.draw(ASKED, on_step=enough)
    assert bits(experiment.draw(ASKED, count=9)) == bits(drawn)


def test_a_step_decodes_only_what_it_shows(experiment, monkeypatch):
    sampler, decoded = experiment._model("ldm")[1], []
    decode = sampler.decode
    monkeypatch.setattr(sampler, "decode", lambda x: decoded.append(len(x)) or decode(x))
    told = []
    experiment.draw(ASKED, count=1, batch=1, on_step=lambda *step: told.append(step))
    assert len(decoded) == len(told) + 1 == 4  # each step's prediction, and the final picture
    experiment.denoising(ASKED, batch=1)
    assert len(decoded) == 4 + 2 * 3 + 1


def test_a_denoising_ends_in_what_is_drawn(experiment):
    made = []
    frames = experiment.denoising(ASKED, count=9, seed=2, steps=2, on_frame=made.append)
    assert [(f.step, f.steps, len(f.x), len(f.predicted)) for f in frames] == [(1, 2, 9, 9), (2, 2, 9, 9)]
    assert frames[0].t > frames[1].t and len(made) == 4
    assert bits(frames[-1].x) == bits(experiment.draw(ASKED, count=9, seed=2, steps=2)) != bits(frames[0].x)


def test_places_are_asked_for_in_the_text_or_beside_it(experiment):
    strong = {"count": 1, "guidance": 100.0}  # rounding to 8 bits would hide how little a few steps teach of places
    beside = experiment.draw(ASKED, **strong, places=[(0.3, 0.6), None])
    assert bits(beside) == bits(experiment.draw("red cube at 0.3 0.6, cyan sphere", **strong))
    assert bits(beside) != bits(experiment.draw(ASKED, **strong, places=[(0.3, 0.3), None]))


def test_verdicts_count_as_the_accuracy_does(experiment):
    texts = ["red cube, cyan sphere", "gray cube", "blue sphere, green cube, red cylinder at 0.2 0.3"]
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = experiment.judge(images, texts)
    parsed = [CLEVR.parse(text)[0] for text in texts]
    judge = experiment._judge
    hits = top_k_hits(scores(judge.evaluator, images, judge.context), Condition.of_lists(parsed, len(CLEVR)).labels)
    assert [sum(verdict.found for verdict in row) for row in found] == hits.tolist()
    assert [[verdict.object for verdict in row] for row in found] == [[CLEVR.names[i] for i in row] for row in parsed]
    for row in found:
        instead = [verdict.instead for verdict in row if not verdict.found]
        assert None not in instead and len(set(instead)) == len(instead)
        assert not set(instead) & {verdict.object for verdict in row}
        assert all(0 <= verdict.score <= (verdict.instead_score or 1) <= 1 for verdict in row)


def test_pillow_pictures_are_judged_as_their_tensor(experiment):
    pictures = experiment.draw(ASKED, count=2)
    large = [picture.resize((128, 128), Image.Resampling.NEAREST) for picture in pictures]
    one = experiment.judge(pictures, ASKED)
    (alone,) = experiment.judge(pictures[0], ASKED)
    assert [v.score for v in alone] == pytest.approx([v.score for v in one[0]], abs=1e-5)
    for judged, of_large in zip(one, experiment.judge(large, ASKED), strict=True):
        assert [v.score for v in judged] == pytest.approx([v.score for v in of_large], abs=0.1)


def test_an_experiment_is_found_by_folder_and_by_configuration(chain, experiment, tmp_path):
    moved = tmp_path / "elsewhere"
    moved.symlink_to(chain / "smoke", target_is_directory=True)
    wanted = bits(experiment.draw(ASKED, count=1))
    assert bits(load(f"{chain}/smoke/").draw(ASKED, count=1)) == wanted
    assert bits(load(SMOKE, f"root={chain}").draw(ASKED, count=1)) == wanted
    assert bits(load(moved).draw(ASKED, count=1)) == wanted
    assert load(chain / "smoke", model="gan").model == "gan"


def test_the_device_is_the_configurations_unless_the_call_names_one(chain):
    with pytest.raises(UserError, match="device 'quantum'"):
        load(chain / "smoke", "device=quantum")
    assert load(chain / "smoke", "device=quantum", device="cpu").device.type == "cpu"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"labels": "pink cube"}, "unknown object 'pink cube'"),
        ({"labels": ["red cube"]}, "give one text"),
        ({"count": 0}, "count 0"),
        ({"count": 1.5}, "count 1.5"),
        ({"seed": "x"}, "seed 'x'"),
        ({"steps": 0}, "steps 0"),
        ({"steps": 1000}, "must not exceed ldm.timesteps"),
        ({"guidance": float("nan")}, "guidance nan"),
        ({"batch": 0}, "batch 0"),
        ({"batch": 10**9}, "batch 1000000000: must be at most 4096"),
        ({"count": True}, "count True"),
        ({"count": torch.ones(2)}, "give a whole number of at least 1"),
        ({"on_step": 5}, "on_step 5: give a function"),
        ({"count": 10**15}, "out of memory"),
        ({"model": "vqgan"}, "choose from ldm, gan"),
        ({"model": "ddpm"}, "ddpm/export.safetensors is missing"),
        ({"model": "gan", "steps": 3}, "steps and guidance are for diffusion models"),
        ({"model": "gan", "places": [(0.5, 0.5)]}, "trained without places"),
        ({"places": [(0.5, 1.5)]}, "outside the picture"),
        ({"places": [(0.5,)]}, "give (x, y) or None"),
        ({"places": [(0.1, 0.2, 0.3)]}, "give (x, y) or None"),
        ({"places": [(torch.ones(2), 0.3)]}, "give (x, y) or None"),
        ({"places": [(10**400, 0.3)]}, "give (x, y) or None"),
        ({"guidance": 10**400}, "must be a finite number"),
        ({"guidance": np.float32("inf")}, "must be a finite number"),
        ({"places": []}, "give one for each of the 1 objects"),
        ({"labels": "red cube at 0.3 0.6", "places": [None]}, "give them once"),
    ],
)
def test_a_fault_is_one_line(experiment, arguments, words):
    with pytest.raises(UserError) as caught:
        experiment.draw(**({"labels": "red cube", "count": 1} | arguments))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_numbers_of_numpy_draw_the_same_bits_as_pythons(experiment):
    wanted = bits(experiment.draw("red cube", count=2, seed=3, steps=2, guidance=1.5))
    told = {"count": np.int64(2), "seed": np.int32(3), "steps": np.uint8(2), "guidance": np.float32(1.5)}
    assert bits(experiment.draw("red cube", **told)) == wanted


def test_too_little_memory_is_said_in_one_line_with_a_fix(chain, monkeypatch):
    def short(*arguments):
        raise MemoryError

    experiment = load(chain / "smoke", model="gan")
    monkeypatch.setattr("stages.use.verdict.scores", short)
    with pytest.raises(UserError, match=r"out of memory .*judge fewer pictures"):
        experiment.judge(torch.zeros(1, 3, 64, 64), "red cube")
    monkeypatch.setitem(MODELS, "ldm", replace(MODELS["ldm"], load=short))
    for call in (lambda: experiment.facts("ldm"), lambda: load(chain / "smoke", model="ldm")):
        with pytest.raises(UserError, match=r"out of memory .*use another device"):
            call()


def test_a_damaged_picture_is_named_by_its_number(experiment):
    whole, cut = io.BytesIO(), io.BytesIO()
    Image.effect_noise((64, 64), 50).save(whole, "png")
    cut.write(whole.getvalue()[:1000])
    pictures = [Image.open(whole), Image.open(cut)]  # the second is read only when it is used
    with pytest.raises(UserError, match=r"picture 1: it cannot be read .*give another file"):
        experiment.judge(pictures, "red cube")


def test_faults_of_loading_and_judging_are_one_line(chain, experiment, tmp_path):
    calls = [
        (lambda: load("nowhere"), "no trained model"),
        (lambda: load(tmp_path), "no trained model"),
        (lambda: load(3), "experiment 3: give a name"),
        (lambda: load("a\0b"), "give a name in checkpoints/"),
        (lambda: load(tmp_path / "x.yaml"), "no configuration"),
        (lambda: load(chain / "smoke", "ldm.stepz=3"), "unknown key ldm.stepz"),
        (lambda: load(chain / "smoke", 3), "setting 3: give a text"),
        (lambda: load(chain / "smoke", device="quantum"), "device 'quantum' cannot be used"),
        (lambda: experiment.denoising("red cube", model="gan"), "use model='ldm'"),
        (lambda: experiment.judge(3, "red cube"), "give Pillow images"),
        (lambda: experiment.judge(torch.zeros(1, 3, 64, 64), 3), "labels 3: give a text"),
        (lambda: experiment.draw("red cube", model=["gan"]), "choose from ldm, gan"),
        (lambda: experiment.judge(torch.zeros(1, 3, 32, 32), "red cube"), "must be (n, 3, 64, 64)"),
        (lambda: experiment.judge(torch.zeros(1, 3, 64, 64, dtype=torch.int64), "red cube"), "must be uint8, or of"),
        (lambda: experiment.judge(torch.full((1, 3, 64, 64), torch.nan), "red cube"), "floats must be in [-1, 1]"),
        (lambda: experiment.judge(torch.full((1, 3, 64, 64), 200.0), "red cube"), "give uint8 for 0 to 255"),
        (lambda: experiment.judge(torch.zeros(2, 3, 64, 64), ["red cube"]), "1 labels for 2 pictures"),
        (lambda: experiment.denoising("red cube", on_frame="x"), "on_frame 'x': give a function"),
    ]
    for call, words in calls:
        with pytest.raises(UserError) as caught:
            call()
        assert words in str(caught.value) and "\n" not in str(caught.value)
