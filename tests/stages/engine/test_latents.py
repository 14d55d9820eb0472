"""Latents are encoded once: in files of bfloat16, by all processes, and not again after a kill."""

import os
from dataclasses import replace

import pytest
import torch

from stages.engine import distributed, latents
from stages.engine.errors import UserError
from stages.engine.latents import from_pack, in_memory, in_pack
from tests.stages.handful import context_with

CPU = torch.device("cpu")
IMAGES = torch.randint(256, (1100, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
PARENTS = {"data": "some", "vae": "other"}


class Encoder:
    """Means of channels and of the batch: like an encoder's rounding, what it returns depends on the batch's rows."""

    def __init__(self, ends_after=None):
        self.pictures, self.ends_after = 0, ends_after

    def __call__(self, images):
        if self.pictures == self.ends_after:
            raise KeyboardInterrupt
        self.pictures += len(images)
        found = images.float().mean((2, 3), keepdim=True)
        return found / 64 + 1e-3 * found.mean(0)


@pytest.fixture
def context(tmp_path, monkeypatch):
    monkeypatch.setattr(latents, "PART", 512)
    return context_with(f"root={tmp_path}")


def test_where_they_are_kept_follows_from_their_bytes_or_the_key(tmp_path):
    for kind, count, expected in (
        ("auto", 18_000, False),
        ("auto", 10**8, True),
        ("auto", 2**31 // (4 * 6 * 8 * 8), False),  # the last that fits into 2 GiB of float32
        ("auto", 2**31 // (4 * 6 * 8 * 8) + 1, True),
        ("memory", 10**8, False),
        ("pack", 8, True),
    ):
        assert in_pack(context_with(f"root={tmp_path}", f"data.latents={kind}"), count, (6, 8, 8)) == expected


def test_files_hold_what_memory_would_in_bfloat16_and_are_made_once(context, tmp_path):
    first, second = Encoder(), Encoder()
    packed = from_pack(context, first, IMAGES, PARENTS)
    whole = in_memory(Encoder(), IMAGES, (3, 1, 1), CPU)
    assert (packed.dtype, packed.shape, first.pictures) == (torch.bfloat16, (1100, 3, 1, 1), 1100)
    assert torch.equal(packed.to(CPU), whole.to(torch.bfloat16))
    assert torch.equal(from_pack(context, second, IMAGES, PARENTS)[:], packed[:]) and second.pictures == 0
    from_pack(context, second, IMAGES, {**PARENTS, "vae": "another"})
    assert second.pictures == 1100 and len([*(tmp_path / "packs").glob("latents-*")]) == 2


def test_after_a_kill_only_what_is_missing_is_encoded(context, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        from_pack(context, Encoder(ends_after=768), IMAGES, PARENTS)
    (folder,) = (tmp_path / "packs").glob("latents-*")
    (folder / ".000001.safetensors.1.tmp").write_bytes(b"half")
    again = Encoder()
    packed = from_pack(context, again, IMAGES, PARENTS)
    assert again.pictures == 1100 - 512 and not [*folder.glob(".*.tmp")]
    assert torch.equal(packed[:], in_memory(Encoder(), IMAGES, (3, 1, 1), CPU).to(torch.bfloat16))


def test_latents_of_another_precision_are_others(context, tmp_path):
    encoder = Encoder()
    for dtype in (torch.float32, torch.bfloat16):
        from_pack(replace(context, dtype=dtype), encoder, IMAGES, PARENTS)
    assert encoder.pictures == 2 * 1100 and len([*(tmp_path / "packs").glob("latents-*")]) == 2


def test_many_files_are_read_only_when_they_are_new_or_changed(context, tmp_path, monkeypatch):
    monkeypatch.setattr(latents, "TRUSTED", 1000)
    from_pack(context, Encoder(), IMAGES, PARENTS)
    (path,) = (tmp_path / "packs").glob("latents-*/000001.safetensors")
    before, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    from_pack(context, Encoder(), IMAGES, PARENTS)  # trusted: what a failing disk does is not seen
    os.utime(path, (1, 1))
    with pytest.raises(UserError, match=r"000001\.safetensors is damaged"):
        from_pack(context, Encoder(), IMAGES, PARENTS)


def test_a_damaged_file_is_one_line(context, tmp_path):
    from_pack(context, Encoder(), IMAGES, PARENTS)
    (path,) = (tmp_path / "packs").glob("latents-*/000001.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"000001\.safetensors is damaged"):
        from_pack(context, Encoder(), IMAGES, PARENTS)


@pytest.mark.parametrize("kind", ["memory", "pack"])
def test_processes_share_the_pictures_and_make_the_bits_of_one(context, monkeypatch, kind):
    expected = in_memory(Encoder(), IMAGES, (3, 1, 1), CPU)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "patient_barrier", lambda: lambda: None)
    monkeypatch.setattr(distributed, "total", lambda value: value)
    counts, found = [], []
    for rank in (1, 0):  # the last one finds all files: it waits for the others
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        encoder = Encoder()
        if kind == "memory":
            found.append(in_memory(encoder, IMAGES, (3, 1, 1), CPU))
        else:
            try:
                found.append(from_pack(context, encoder, IMAGES, PARENTS)[:])
            except FileNotFoundError:
                assert rank == 1
        counts.append(encoder.pictures)
    assert sum(counts) == 1100 and min(counts) > 0
    if kind == "memory":
        assert torch.equal(sum(found), expected)
    else:
        assert torch.equal(found[-1], expected.to(torch.bfloat16))
