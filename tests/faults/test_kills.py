"""`make faults`: every stage killed by SIGKILL at random moments and resumed, against a run that was left alone.

KILLS says how many times a stage (25). Of these the first ones wait for a temporary file, so that the kill falls into
a write: of a checkpoint, of the export, of the pack.
"""

import json
import os
import random
import shutil
import signal
import time

import pytest

from tests.conftest import finish, start_stage
from tests.stages.test_resume import digest, lines

pytestmark = pytest.mark.faults
KILLS = int(os.environ.get("KILLS", "25"))
WRITES = {  # a write to hit, where the stage makes one
    "render": [".*.tmp", "iclevr/.*.tmp"],
    "evaluator": [".step-*.tmp", ".export*.tmp", "../../packs/.*.tmp"],
    "vae": [".step-*.tmp", ".export*.tmp"],
    "ldm": [".step-*.tmp", ".export*.tmp"],
    "gan": [".step-*.tmp", ".export*.tmp"],
    "ddpm": [".step-*.tmp", ".export*.tmp"],
    "evaluate": [".*.tmp", "../../packs/.*.tmp"],
}
FOLDERS = {"evaluate": "eval"}
PACKS = ("evaluator", "evaluate")  # run without a pack, so that packing is killed too


def outcome(root, stage) -> dict:
    """What must be the same bit for bit: tensors, curve, pictures, figures; not how long it took."""
    folder = root / "smoke" / FOLDERS.get(stage, stage)
    assert not list(root.rglob(".*.tmp")), "a temporary file was left"
    if stage == "render":
        return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    pictures = {p.name: p.read_bytes() for p in folder.rglob("*.png")}
    if stage == "evaluate":
        results = json.loads((folder / "report.json").read_text())["results"]
        figures = {m: {n: f["per_seed"] for n, f in sets.items()} for m, sets in results.items()}
        return {"figures": figures, **pictures}
    return {"export": digest(folder), "curve": lines(folder), **pictures}


def run_to_the_end(root, stage):
    began = time.monotonic()
    status, said = finish(start_stage(stage, f"root={root}"))
    assert status == 0, said
    return time.monotonic() - began, said


def killed(root, stage, seconds, pattern) -> bool:
    """Starts the stage and kills it `seconds` after its start, or as soon as a file of `pattern` appears."""
    process = start_stage(stage, f"root={root}")
    folder = root / "smoke" / FOLDERS.get(stage, stage)
    deadline = time.monotonic() + (60 if pattern else seconds)
    while process.poll() is None and time.monotonic() < deadline:
        if pattern and folder.exists() and next(folder.glob(pattern), None):
            break
        time.sleep(0.0005 if pattern else 0.005)
    process.send_signal(signal.SIGKILL)
    return finish(process)[0] == -signal.SIGKILL


@pytest.fixture(scope="module")
def roots(chain, tmp_path_factory):
    """stage -> a root in which all that the stage needs is there, but nothing of its own."""

    def make(stage):
        root = tmp_path_factory.mktemp(stage) / "root"
        shutil.copytree(chain, root, ignore=shutil.ignore_patterns("tensorboard"))
        shutil.rmtree(root / "smoke" / FOLDERS.get(stage, stage), ignore_errors=True)
        if stage in PACKS:
            shutil.rmtree(root / "packs")
        return root

    return make


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("stage", list(WRITES))
def test_killed_at_any_moment_nothing_is_lost(roots, stage):
    whole_root = roots(stage)
    seconds, _ = run_to_the_end(whole_root, stage)
    whole, hits, moments = outcome(whole_root, stage), 0, random.Random(stage)
    for attempt in range(KILLS):
        root = roots(stage)
        pattern = WRITES[stage][attempt % len(WRITES[stage])] if attempt < KILLS // 3 else None
        hits += killed(root, stage, moments.uniform(0.2, seconds), pattern)
        run_to_the_end(root, stage)
        assert outcome(root, stage) == whole, f"attempt {attempt}"
        shutil.rmtree(root.parent)
    print(f"{stage}: killed {hits} of {KILLS} times before its end, lost 0")
    assert hits > KILLS // 2
