"""`make faults`: full disks, places that cannot be read or written, too little memory, and memory over many steps."""

import json
import os
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import finish, start_stage
from tests.helpers import assert_one_line, digest

pytestmark = pytest.mark.faults


def unfinished(root):
    """Removes the LDM's export and newest checkpoint. Returns its folder and the checkpoint that is left."""
    folder = root / "smoke/ldm"
    (folder / "export.safetensors").unlink()
    max(folder.glob("step-*.ckpt")).unlink()
    return folder, max(folder.glob("step-*.ckpt"))


@pytest.fixture
def small_disk(tmp_path):
    """Yields the folder of a file system of 150 MB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=150m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root can mount a small file system")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("free", [0, 20_000, 200_000])
def test_on_a_full_disk_the_last_checkpoint_stays_whole(chain, chain_copy, small_disk, free):
    root = shutil.copytree(chain_copy, small_disk / "root")
    folder, kept = unfinished(root)
    before = kept.read_bytes()
    space = os.statvfs(small_disk)
    (small_disk / "filler").write_bytes(bytes(max(0, space.f_bavail * space.f_frsize - free)))
    assert_one_line(*finish(start_stage("ldm", f"root={root}")), "No space left")
    assert kept.read_bytes() == before
    (small_disk / "filler").unlink()
    assert finish(start_stage("ldm", f"root={root}"))[0] == 0
    assert digest(folder) == digest(chain / "smoke/ldm")


def test_on_a_full_disk_no_picture_is_drawn_in_part(chain, small_disk):
    """The disk fills up while scenes are drawn. With room again, the pictures are the same as without the fault."""
    space = os.statvfs(small_disk)
    (small_disk / "filler").write_bytes(bytes(space.f_bavail * space.f_frsize - 100_000))
    said = finish(start_stage("render", f"root={small_disk}"))
    assert_one_line(*said, "No space left")
    folder, whole = small_disk / "smoke/render", chain / "smoke/render"
    assert 0 < len([*folder.glob("iclevr/CLEVR*.png")]) < len([*whole.glob("iclevr/*.png")])
    (small_disk / "filler").unlink()
    assert finish(start_stage("render", f"root={small_disk}"))[0] == 0
    for path in whole.rglob("*.*"):
        if path.is_file():
            assert (folder / path.relative_to(whole)).read_bytes() == path.read_bytes(), path.name


def test_on_a_read_only_disk(chain, chain_copy, small_disk):
    root = shutil.copytree(chain_copy, small_disk / "root")
    folder, kept = unfinished(root)
    before = kept.read_bytes()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert_one_line(*finish(start_stage("ldm", f"root={root}")), str(root), "Read-only file system", "root=DIR")
    assert_one_line(*finish(start_stage("render", f"root={small_disk}/new")), "Read-only file system", "root=DIR")
    assert kept.read_bytes() == before
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert finish(start_stage("ldm", f"root={root}"))[0] == 0
    assert digest(folder) == digest(chain / "smoke/ldm")


@pytest.fixture
def bound():
    """Returns a command prefix under which permissions hold even for root, who could otherwise bypass them."""
    if os.geteuid():
        return ()
    under = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")
    if subprocess.run([*under, "true"], capture_output=True).returncode:
        pytest.skip("as root this needs setpriv of util-linux")
    return under


@pytest.mark.parametrize(
    ("place", "mode"),
    [
        (".", 0o500),  # nothing new below the root
        ("smoke/ldm", 0o500),  # no new checkpoint
        ("smoke/ldm", 0o000),
        ("newest checkpoint", 0o000),
        ("smoke/vae/export.safetensors", 0o000),
        ("smoke/render/train.json", 0o000),
        ("smoke/render/iclevr", 0o000),
        ("packs", 0o000),
    ],
)
def test_without_permission(chain, chain_copy, bound, place, mode):
    folder, kept = unfinished(chain_copy)
    if place == ".":
        shutil.rmtree(chain_copy / "smoke")
    path = kept if place == "newest checkpoint" else chain_copy / place
    before, old = kept.read_bytes() if kept.exists() else b"", path.stat().st_mode
    path.chmod(mode)
    stage = "render" if place == "." else "ldm"
    try:
        said = finish(start_stage(stage, f"root={chain_copy}", under=bound))
    finally:
        path.chmod(old)
    assert_one_line(*said, "ermission denied", str(chain_copy))
    if place != ".":
        assert kept.read_bytes() == before
        assert finish(start_stage("ldm", f"root={chain_copy}"))[0] == 0
        assert digest(folder) == digest(chain / "smoke/ldm")


def test_too_little_memory_is_one_line(chain, chain_copy):
    unfinished(chain_copy)
    settings = (f"root={chain_copy}", f"data.folder={chain}/smoke/render", "name=large", "uses.vae=smoke")
    settings += ("uses.evaluator=smoke", "ldm.batch=4000000")
    said = finish(start_stage("ldm", *settings, under=("prlimit", f"--as={12 << 30}")))
    assert_one_line(*said, "out of memory", "ldm.batch")


def test_memory_does_not_grow_with_steps(chain_copy):
    """Compares resident memory after 500 and after 2,000 of 2,100 steps of the smoke LDM."""
    (chain_copy / "smoke/ldm").rename(chain_copy / "gone")
    settings = ["ldm.steps=2100", "ldm.log_every=100", "ldm.preview_every=2100", "ldm.checkpoint_every=500"]
    process = start_stage("ldm", f"root={chain_copy}", *settings)
    metrics, seen = chain_copy / "smoke/ldm/metrics.jsonl", {}
    while process.poll() is None:
        time.sleep(0.01)  # leaves a core to the run
        lines = metrics.read_text().splitlines(keepends=True) if metrics.exists() else []
        whole = [line for line in lines if line.endswith("\n")]  # the last line may be partly written
        if whole and process.poll() is None:
            with suppress(OSError, ValueError, IndexError):  # the process has just ended
                resident = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
                seen[json.loads(whole[-1])["step"]] = resident
    assert finish(process)[0] == 0
    print("resident pages by step:", seen)
    assert seen[2000] <= 1.02 * seen[500]
