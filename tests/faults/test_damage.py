"""`make faults`: checkpoints, exports and packs that are cut, have a flipped bit, or try to run code."""

import hashlib
import io
import os
import pickle
import shutil

import pytest
import torch

from stages.engine.checkpoint import MAGIC
from tests.helpers import assert_one_line, digest

pytestmark = pytest.mark.faults


def ldm_folder(root):
    folder = root / "smoke/ldm"
    (folder / "export.safetensors").unlink()
    return folder, max(folder.glob("step-*.ckpt"))


@pytest.mark.parametrize("file", ["smoke/vae/export.safetensors", "packs"])
def test_a_changed_word_in_an_export_s_header_is_damage(stage, chain_copy, file):
    path = chain_copy / file
    path = next(path.glob("*.safetensors")) if path.is_dir() else path
    content = path.read_bytes()
    path.unlink()  # it may be a link
    word = b"red cube" if file == "packs" else b"latent_channels"
    path.write_bytes(content.replace(word, word[::-1]))
    shutil.rmtree(chain_copy / "smoke/ldm")
    assert_one_line(*stage("ldm", f"root={chain_copy}"), str(path), "checksum of its description")


def test_where_no_checkpoint_can_be_read_nothing_starts_again(stage, chain_copy):
    folder, _ = ldm_folder(chain_copy)
    for path in folder.glob("step-*.ckpt"):
        path.write_bytes(path.read_bytes()[:-1])
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    for _ in range(2):
        assert_one_line(*stage("ldm", f"root={chain_copy}"), "no earlier one can be read", "--fresh")
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


DAMAGES = [("cut", tenth) for tenth in range(10)] + [("flipped", tenth) for tenth in range(10)]


@pytest.mark.parametrize(("kind", "tenth"), DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(stage, chain, chain_copy, kind, tenth):
    folder, newest = ldm_folder(chain_copy)
    content = bytearray(newest.read_bytes())
    place = min(len(content) - 1, len(content) * tenth // 10)
    if kind == "cut":
        content = content[:place]
    else:
        content[place] ^= 16
    newest.write_bytes(content)
    status, said = stage("ldm", f"root={chain_copy}")
    assert status == 0, said
    assert f"warning: {newest} is damaged" in said
    assert digest(folder) == digest(chain / "smoke/ldm")


@pytest.mark.parametrize(("kind", "tenth"), DAMAGES)
@pytest.mark.parametrize("file", ["smoke/vae/export.safetensors", "smoke/evaluator/export.safetensors", "packs"])
def test_a_damaged_export_or_pack_is_one_line(stage, chain_copy, file, kind, tenth):
    path = chain_copy / file
    path = next(path.glob("*.safetensors")) if path.is_dir() else path
    content = bytearray(path.read_bytes())
    place = min(len(content) - 1, len(content) * tenth // 10)
    damaged = content[:place] if kind == "cut" else content
    if kind == "flipped":
        damaged[place] ^= 16
    path.unlink()  # it may be a link
    path.write_bytes(damaged)
    shutil.rmtree(chain_copy / "smoke/ldm")
    assert_one_line(*stage("ldm", f"root={chain_copy}"), str(path))
    assert path.read_bytes() == bytes(damaged)


class Hostile:
    def __init__(self, witness):
        self.witness = str(witness)

    def __reduce__(self):
        return os.system, (f"touch {self.witness}",)


HOSTILE = ["checkpoint", "smoke/vae/export.safetensors", "smoke/evaluator/export.safetensors", "packs"]


@pytest.mark.parametrize("file", HOSTILE)
def test_nothing_runs_from_a_hostile_file(stage, chain_copy, tmp_path, file):
    witness, content = tmp_path / "ran", pickle.dumps(Hostile(tmp_path / "ran"))
    _, newest = ldm_folder(chain_copy)
    path = newest if file == "checkpoint" else chain_copy / file
    path = next(path.glob("*.safetensors")) if path.is_dir() else path
    path.unlink()  # it may be a link
    path.write_bytes(content)
    status, said = stage("ldm", f"root={chain_copy}")
    assert status == (0 if file == "checkpoint" else 2), said
    assert not witness.exists()


def test_a_hostile_payload_under_a_right_checksum_is_refused(stage, chain_copy, tmp_path):
    _, newest = ldm_folder(chain_copy)
    buffer = io.BytesIO()
    torch.save({"step": 6, "parts": Hostile(tmp_path / "ran")}, buffer)
    newest.write_bytes(MAGIC + hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue())
    status, said = stage("ldm", f"root={chain_copy}")
    assert (status, "is refused" in said) == (0, True), said
    assert not (tmp_path / "ran").exists()
