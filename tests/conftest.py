"""What tests share: the chain trained once through Make on the smoke configuration, and ways to run a stage."""

import json
import os
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from data.fingerprints import fingerprint
from stages.engine.config import load
from stages.engine.files import write_atomically

# Everything but the marked tests runs on the CPU, also beside a GPU: what it promises to the bit holds there.
if os.environ.get("ON_GPU") != "1":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

pytest.register_assert_rewrite("tests.helpers")  # so that its asserts too show what they compared

from tests.helpers import of_all_workers  # noqa: E402 (after the two settings above)

HERE = Path(__file__).resolve().parent.parent
SMOKE = "configs/smoke.yaml"


def module_of(name: str) -> str:
    """The module of a stage, experiment or benchmark: `samplers` -> `stages.experiments.samplers`."""
    folders = ("", "experiments/", "benchmark/", "use/")
    found = next(folder for folder in folders if (HERE / f"stages/{folder}{name}.py").is_file())
    return f"stages.{found.replace('/', '.')}{name}"


def start_stage(stage: str, *arguments: str, under: tuple[str, ...] = (), **environment: str) -> subprocess.Popen:
    """A stage as a user starts it, in a process of its own, `under` another command where that says so."""
    command = [*under, sys.executable, "-m", module_of(stage), "--config", SMOKE, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=HERE, env=os.environ | environment, **pipes)


def finish(process: subprocess.Popen) -> tuple[int, str]:
    """Exit status and everything said."""
    out, err = process.communicate()
    return process.returncode, out + err


def signal_after(process, folder, number, pattern="step-*.ckpt"):
    """Sends a signal as soon as the folder contains a file of that pattern."""
    while not list(folder.glob(pattern)) and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(number)
    return finish(process)


def pytest_collection_modifyitems(items):
    """What needs the chain first, and the longest of it: the other of two workers begins where nothing waits for it."""
    items.sort(key=lambda item: ("chain" not in item.fixturenames, "test_reproduce" not in item.name))


@pytest.fixture
def stage(capsys, monkeypatch):
    """Runs a stage's command inside this process: (status, what it said). Quick, for bad inputs."""

    def run(name: str, *arguments: str, config: str = SMOKE) -> tuple[int, str]:
        monkeypatch.chdir(HERE)
        monkeypatch.setattr(sys, "argv", [module_of(name), "--config", str(config), *arguments])
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        try:
            runpy.run_module(module_of(name), run_name="__main__")
            status = 0
        except SystemExit as end:
            status = end.code
        finally:  # a command leaves its handlers behind, and ignores signals once it ends
            for number, handler in handlers.items():
                signal.signal(number, handler)
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    return run


def make(*arguments: str) -> subprocess.CompletedProcess:
    """Make with this interpreter and without its set-up."""
    # newer than the lock files: set up. A variable reaches sub-makes
    with tempfile.NamedTemporaryFile() as ready, tempfile.NamedTemporaryFile() as extra:
        set_up = [f"READY={ready.name}", f"EXPORT_READY={extra.name}", f"PY={sys.executable}"]
        command = ["make", *set_up, *arguments]
        return subprocess.run(command, cwd=HERE, capture_output=True, text=True)


def commands_of(*arguments: str) -> list[tuple[str, ...]]:
    """What Make would run, in order: each stage's name and what it is told, as `stage` takes them.

    Run so, inside the test's process, they need not import torch again, which takes each of them seconds.
    """
    result = make("-n", *arguments)
    assert result.returncode == 0, result.stderr
    found = []
    for line in result.stdout.splitlines():
        if " -m stages." in line and "-m stages.engine." not in line:  # those only print a value
            module, option, config, *told = shlex.split(line.split(" -m stages.")[1])
            assert (option, config) == ("--config", SMOKE)
            found.append((module.rpartition(".")[2], *told))
    return found


def shared_weights(root: Path) -> list[Path]:
    """The evaluator's checkpoints and export: 400 of the chain's 430 MB, and no test of a copy needs to change them."""
    return [path for path in (root / "smoke/evaluator").iterdir() if path.suffix in (".ckpt", ".safetensors")]


def copy_chain(source: Path, root: Path, skip: Callable[[str, list[str]], list[str]] | None = None) -> None:
    """A copy of a chain's root, with links for `shared_weights`, whose pack is named after the copy's own pictures."""
    shared = set(map(str, shared_weights(source)))

    def copy(old: str, new: str) -> None:
        os.link(old, new) if old in shared else shutil.copy2(old, new)

    shutil.copytree(source, root, copy_function=copy, ignore=skip)
    every = load(HERE / SMOKE).data.validation_every
    pack = root / "packs" / f"{fingerprint(source / 'smoke/render', every)}.safetensors"
    if not pack.exists():  # the source was itself moved from where it was made
        (pack,) = (root / "packs").glob("*.safetensors")
    pack.rename(pack.with_stem(fingerprint(root / "smoke/render", every)))  # its name follows from the folder's place


@pytest.fixture(scope="session")
def chain(tmp_path_factory) -> Path:
    """The root folder of `make vae ldm gan eval` on the smoke configuration. Tests must not change it.

    Made once; each of pytest's workers has a copy.
    """
    root = tmp_path_factory.getbasetemp() / "chain"
    with of_all_workers(tmp_path_factory, "made") as made:
        if not made.exists():
            result = make("-j2", "vae", "ldm", "gan", "eval", f"CONFIG={SMOKE}", f"SET=root={made}.partly")
            assert result.returncode == 0, result.stdout + result.stderr
            made.with_suffix(".partly").rename(made)
    copy_chain(made, root)
    return root


def ask_for_few(folder: Path, rows: int) -> None:
    """Leaves only the last `rows` label sets of each test set of a data folder.

    A preview and an evaluation draw all of them: 32 each take most of a small training's time.
    """
    for name in ("test", "new_test"):
        path = folder / f"{name}.json"
        write_atomically(path, json.dumps(json.loads(path.read_text())[-rows:]).encode())  # also in place of a link


@pytest.fixture
def chain_copy(chain, tmp_path) -> Iterator[Path]:
    """A copy of the chain's root that a test may change. Of the evaluator's weights it has links: replace, don't write.

    A stage replaces files, so that only a test itself can write through a link.
    """

    def skip(folder: str, names: list[str]) -> list[str]:  # a small disk has no room for the evaluator's checkpoints
        return [n for n in names if n.endswith(".lock") or (folder.endswith("evaluator") and n.startswith("step-"))]

    before = {path: path.stat().st_mtime_ns for path in shared_weights(chain)}
    copy_chain(chain, root := tmp_path / "root", skip)
    yield root
    after = {path: path.stat().st_mtime_ns for path in shared_weights(chain)}
    assert after == before, "the chain's own evaluator was written to, through a link: unlink it first"


os.environ.setdefault("TQDM_DISABLE", "1")
