"""`make faults`: every stage, killed by SIGKILL at random moments and resumed, equals an uninterrupted run.

KILLS sets the number of kills per stage (25). The first third of them wait for a temporary file, so that the kill
happens during a write of a checkpoint, the export or the pack.
"""

import json
import os
import random
import shutil
import signal
import time
from multiprocessing.pool import ThreadPool

import pytest

from tests.conftest import finish, start_stage
from tests.helpers import digest, lines

pytestmark = pytest.mark.faults
KILLS = int(os.environ.get("KILLS", "25"))
PACK = "packs/.*.tmp"  # in the root; the others are in the stage's folder
WRITES = {  # a write to hit, where the stage makes one
    "render": [".*.tmp", "iclevr/.*-CLEVR*.png"],
    "evaluator": [".step-*.tmp", ".export*.tmp", PACK],
    "vae": [".step-*.tmp", ".export*.tmp"],
    "ldm": [".step-*.tmp", ".export*.tmp"],
    "gan": [".step-*.tmp", ".export*.tmp"],
    "ddpm": [".step-*.tmp", ".export*.tmp"],
    "onestep": [".step-*.tmp", ".export*.tmp", "pairs/.*.tmp"],
    "evaluate": [".*.tmp", PACK],
}
FOLDERS = {"evaluate": "eval"}
PACKS = ("evaluator", "evaluate")  # run without a pack, so that packing is killed too


def outcome(root, stage) -> dict:
    """Returns what must be equal bit for bit: tensors, curve, pictures and figures, but not times."""
    folder = root / "smoke" / FOLDERS.get(stage, stage)
    assert not [*root.rglob(".*.tmp"), *root.rglob(".*.png")], "a temporary file was left"
    if stage == "render":
        return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    pictures = {p.name: p.read_bytes() for p in folder.rglob("*.png")}
    if stage == "evaluate":
        results = json.loads((folder / "report.json").read_text())["results"]
        figures = {m: {n: f.get("per_seed", f) for n, f in sets.items()} for m, sets in results.items()}
        return {"figures": figures, **pictures}
    return {"export": digest(folder), "curve": lines(folder), **pictures}


def start(root, stage):
    return start_stage(stage, f"root={root}", OMP_NUM_THREADS="1")  # two at a time


def run_to_the_end(root, stage) -> float:
    began = time.monotonic()
    status, said = finish(start(root, stage))
    assert status == 0, said
    assert "Traceback" not in said
    return time.monotonic() - began


def killed(root, stage, seconds, pattern) -> tuple[bool, bool]:
    """Starts the stage and kills it `seconds` after its start, or as soon as a file of `pattern` appears.

    Returns whether that was before its end, and whether it was while something was written.
    """
    process = start(root, stage)
    folder = root / "smoke" / FOLDERS.get(stage, stage)
    deadline = time.monotonic() + (60 if pattern else seconds)
    while process.poll() is None and time.monotonic() < deadline:
        if pattern and next((root if pattern == PACK else folder).glob(pattern), None):
            break
        time.sleep(0.0005 if pattern else 0.005)
    process.send_signal(signal.SIGKILL)
    hit = finish(process)[0] == -signal.SIGKILL
    return hit, hit and bool([*root.rglob(".*.tmp"), *root.rglob(".*.png")])


@pytest.fixture(scope="module")
def roots(chain, tmp_path_factory):
    """Returns a function of a stage: a new root with everything that the stage needs but none of its files."""

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
    seconds = run_to_the_end(whole_root, stage)
    whole, random_moments = outcome(whole_root, stage), random.Random(stage)
    moments = [random_moments.uniform(0.2, seconds) for _ in range(KILLS)]

    def attempt(number: int) -> tuple[bool, bool]:
        root = roots(stage)
        pattern = WRITES[stage][number % len(WRITES[stage])] if number < KILLS // 3 else None
        struck = killed(root, stage, moments[number], pattern)
        run_to_the_end(root, stage)
        assert outcome(root, stage) == whole, f"attempt {number}"
        shutil.rmtree(root.parent)
        return struck

    with ThreadPool(2) as pool:
        hits, in_writes = map(sum, zip(*pool.map(attempt, range(KILLS), chunksize=1), strict=True))
    print(f"{stage}: killed {hits} of {KILLS} times before its end, {in_writes} of them in a write, lost 0")
    assert hits > KILLS // 2
    assert in_writes or KILLS < 9, "no kill happened during a write"
