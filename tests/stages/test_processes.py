"""Two processes under torchrun give the same run as one with the same global batch; gloo, float32, on the CPU."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from stages.engine import distributed
from stages.engine.config import load
from stages.engine.errors import UserError
from stages.engine.export import load_export
from tests.conftest import HERE, SMOKE

SMALL = "evaluator.learning_rate=1e-5"
NORMS = ("evaluator", "reader")
FAULTS = pytest.mark.faults  # long: part of `make faults`
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def settings_of(processes, name, root, *overrides):
    """Returns the overrides for a stage as a separate experiment on the chain's pictures, evaluator and autoencoder."""
    settings = [f"root={root}", f"name=by-{processes}", f"data.folder={root}/smoke/render", "device=cpu"]
    return [*settings, "precision=float32", *(f"uses.{s}=smoke" for s in ("evaluator", "vae") if s != name), *overrides]


def start(processes, stage, root, *overrides):
    """Starts a stage in processes of its own."""
    # Evaluator and reader are all batch norm: torch's is off by .2 % of a layer's gradient on channels_last pictures,
    # the one under torchrun is not (test_distributed.py). So the single process is started by torchrun as well
    plain = processes == 1 and stage not in NORMS
    launcher = [sys.executable, "-m"] if plain else [*TORCHRUN, str(processes), "-m"]
    command = [*launcher, f"stages.{stage}", "--config", SMOKE, *settings_of(processes, stage, root, *overrides)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=HERE, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def end(process):
    said = process.communicate()[0]
    return process.returncode, said


def train_alone(run, name, root, *overrides):
    """Trains a stage by one process: this one, which has imported torch already, unless torchrun must start it."""
    if name in NORMS:
        status, said = end(start(1, name, root, *overrides))
    else:
        status, said = run(name, *settings_of(1, name, root, *overrides))
    assert status == 0, said


def losses(folder):
    """Returns each line's step and parts of the loss, without what is counted or averaged within one process only."""
    names = (
        "step",
        "loss",
        "reconstruction",
        "commitment",
        "adversarial",
        "adversarial_weight",
        "discriminator",
        "wasserstein",
        "penalty",
        "gradient_norm",
    )
    names += ("critic_gradient_norm", "generator_gradient_norm")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k in names} for line in lines]


def assert_equal_runs(root, stage, overrides=()):
    rate = getattr(load(HERE / SMOKE, [*overrides]), stage).learning_rate
    one, two = (root / f"by-{n}" / stage for n in (1, 2))
    assert losses(one), "nothing was logged"
    for a, b in zip(losses(one), losses(two), strict=True):
        assert b == pytest.approx(a, rel=2e-3, abs=2e-4)
    (tensors, _), (others, _) = (load_export(f / "export.safetensors", "") for f in (one, two))
    for name, tensor in tensors.items():
        difference = (others[name].double() - tensor.double()).abs().max().item()
        # Adam takes a step of the learning rate for any gradient: rounding may flip the sign of one near zero
        allowed = 4e-3 if "running_" in name else 4 * rate
        assert difference <= allowed * max(1.0, tensor.double().abs().max().item()), (name, difference)
        if "running_" not in name and tensor.is_floating_point() and tensor.numel() >= 1000:
            mean = (others[name].double() - tensor.double()).abs().mean().item()
            assert mean <= 0.1 * rate, (name, mean / rate)  # unequal runs are several steps apart


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("vae", ("vae.codebook.dead_below=0.5", "vae.codebook.init=kmeans")),
        pytest.param(
            "vae", ("vae.quantizer=residual", "vae.residual.codes=16", "vae.residual.dead_below=0.5"), marks=FAULTS
        ),
        # Adam takes a whole step for any gradient: rounding flips the sign of some of eleven million near zero, which
        # at the smoke configuration's rate shows in the gradient norm after four steps (.4 %)
        pytest.param("evaluator", (SMALL,), marks=FAULTS),
        pytest.param("ldm", (), marks=FAULTS),
        pytest.param("gan", ("gan.generator.condition=batch-norm",), marks=FAULTS),
        pytest.param("ddpm", (), marks=FAULTS),
        pytest.param("onestep", ("uses.ldm=smoke",), marks=FAULTS),
        pytest.param("reader", ("reader.learning_rate=3e-5",), marks=FAULTS),  # for the same reason
        pytest.param("vae", ("vae.accumulate=2",), marks=FAULTS),  # parts of each process's rows
        pytest.param("gan", ("gan.accumulate=2", "gan.loss=r3gan"), marks=FAULTS),
        pytest.param("gan", ("gan.accumulate=2", "gan.critic.condition=projection+contrast"), marks=FAULTS),
    ],
)
def test_two_processes_equal_one(stage, chain_copy, name, overrides):
    train_alone(stage, name, chain_copy, *overrides)
    status, said = end(start(2, name, chain_copy, *overrides))
    assert status == 0, said
    assert_equal_runs(chain_copy, name, overrides)


@pytest.mark.parametrize("name", ["ldm", *(pytest.param(s, marks=FAULTS) for s in ("evaluator", "vae", "gan"))])
def test_a_process_that_dies_ends_the_run_and_the_run_goes_on(stage, chain_copy, name):
    overrides = (SMALL,) if name == "evaluator" else ()
    train_alone(stage, name, chain_copy, *overrides)
    process, folder = start(2, name, chain_copy, *overrides), chain_copy / "by-2" / name
    while not list(folder.glob("step-*.ckpt")) and process.poll() is None:
        time.sleep(0.01)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(children[-1]), signal.SIGKILL)
    status, said = end(process)
    assert status != 0, said
    assert "SIGKILL" in said
    assert not (folder / "export.safetensors").exists()
    status, said = end(start(2, name, chain_copy, *overrides))
    assert (status, "continuing at step" in said) == (0, True), said
    assert_equal_runs(chain_copy, name, overrides)


@FAULTS
def test_two_processes_evaluate_as_one(chain_copy):
    reports = []
    for processes in (1, 2):
        uses = ("uses.ldm=smoke", "uses.gan=smoke", f"name=evaluated-by-{processes}")
        status, said = end(start(processes, "evaluate", chain_copy, *uses))
        assert status == 0, said
        folder = chain_copy / f"evaluated-by-{processes}/eval"
        results = json.loads((folder / "report.json").read_text())["results"]
        figures = {(m, n): f["per_seed"] for m, sets in results.items() for n, f in sets.items()}
        reports.append((figures, {p.name: p.read_bytes() for p in folder.glob("*.png")}))
    assert reports[0] == reports[1]


def test_a_batch_that_cannot_be_shared_says_so(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    assert distributed.share_of(8) == slice(0, 4)
    with pytest.raises(UserError, match="a batch of 7 cannot be shared by 2 processes: choose a multiple of 2"):
        distributed.share_of(7)


@FAULTS
def test_a_batch_that_cannot_be_shared_is_one_line(chain_copy):
    status, said = end(start(2, "ldm", chain_copy, "ldm.batch=7"))
    assert status != 0
    assert "error: a batch of 7 cannot be shared by 2 processes" in said


@FAULTS
def test_a_run_does_not_go_on_under_another_number_of_processes(chain_copy):
    assert end(start(1, "ldm", chain_copy))[0] == 0
    (chain_copy / "by-1/ldm/export.safetensors").unlink()
    status, said = end(start(2, "ldm", chain_copy, "name=by-1"))
    assert status != 0
    assert "processes: 1 -> 2" in said and "--fresh" in said
