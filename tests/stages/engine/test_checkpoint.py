import errno
import os
import stat

import pytest
import torch
from safetensors.torch import load_file

from stages.engine.checkpoint import Checkpoints, checkpoints_in, step_of
from stages.engine.errors import Interrupted, UserError
from stages.engine.export import load_export, read_about, save_export
from stages.engine.files import read_json, write_atomically
from tests.helpers import Hostile


def checkpoints(folder, keep=2):
    warnings = []
    return Checkpoints(folder, keep, warnings.append), warnings


def test_round_trip_and_keeps_the_last(tmp_path):
    store, _ = checkpoints(tmp_path)
    assert store.load_latest() is None
    for step in (1, 2, 3):
        store.save(step, {"weights": torch.full((3,), float(step))})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002.ckpt", "step-00000003.ckpt"]
    assert store.load_latest()["weights"].tolist() == [3, 3, 3]


def test_a_copy_under_another_name_is_neither_deleted_nor_loaded(tmp_path):
    store, warnings = checkpoints(tmp_path, keep=1)
    copies = [tmp_path / f"step-00000001{more}.ckpt" for more in ("-best", "_old")]
    for copy in copies:
        copy.write_bytes(store.save(1, {"step": 1}).read_bytes())
    store.save(2, {"step": 2})
    newest = store.save(123456789, {"step": 3})
    assert checkpoints_in(tmp_path) == [newest] and step_of(newest) == 123456789
    assert store.load_latest()["step"] == 3 and all(copy.exists() for copy in copies) and not warnings


def test_an_older_one_goes_only_when_the_newer_is_safe(tmp_path, monkeypatch):
    store, _ = checkpoints(tmp_path)
    kept = {path: path.read_bytes() for path in (store.save(step, {"step": step}) for step in (1, 2))}

    def full(number):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        store.save(3, {"step": 3})
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == kept


@pytest.mark.parametrize("tenth", range(10))
def test_a_cut_checkpoint_gives_way_to_the_one_before_it(tmp_path, tenth):
    store, warnings = checkpoints(tmp_path)
    store.save(1, {"weights": torch.ones(100)})
    newest = store.save(2, {"weights": torch.zeros(100)})
    content = newest.read_bytes()
    newest.write_bytes(content[: len(content) * tenth // 10])
    assert store.load_latest()["step"] == 1
    assert str(newest) in warnings[0]


def test_a_flipped_byte_is_noticed(tmp_path):
    store, warnings = checkpoints(tmp_path)
    store.save(1, {"weights": torch.ones(100)})
    newest = store.save(2, {"weights": torch.zeros(100)})
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    assert store.load_latest()["step"] == 1
    assert "checksum" in warnings[0]


def test_one_that_another_process_has_put_aside_is_passed_over(tmp_path, monkeypatch):
    store, warnings = checkpoints(tmp_path)
    kept = store.save(1, {"weights": torch.ones(100)})
    found = [kept, tmp_path / "step-00000002.ckpt"]
    monkeypatch.setattr("stages.engine.checkpoint.checkpoints_in", lambda folder: found)
    assert store.load_latest()["step"] == 1
    assert not warnings


def test_none_readable_is_an_error(tmp_path):
    store, _ = checkpoints(tmp_path)
    store.save(1, {}).write_bytes(b"")
    with pytest.raises(UserError, match="--fresh"):
        store.load_latest()


@pytest.mark.parametrize(
    ("refusal", "kind"), [(OSError(errno.EIO, "Input/output error"), UserError), (MemoryError(), MemoryError)]
)
def test_one_that_may_be_whole_but_cannot_be_read_now_is_not_passed_over(tmp_path, monkeypatch, refusal, kind):
    store, warnings = checkpoints(tmp_path)
    kept = [store.save(step, {}) for step in (1, 2)]
    read = store._read

    def refused(path):
        if path == kept[1]:
            raise refusal
        return read(path)

    monkeypatch.setattr(store, "_read", refused)
    with pytest.raises(kind) as fault:
        store.load_latest()
    assert kind is MemoryError or f"cannot read {kept[1]}: Input/output error" in str(fault.value)
    assert sorted(tmp_path.iterdir()) == kept and not warnings


def test_a_hostile_pickle_is_refused_and_does_not_run(tmp_path):
    store, warnings = checkpoints(tmp_path)
    store.save(1, {"weights": torch.ones(2)})
    store.save(2, {"weights": Hostile(tmp_path / "ran")})
    assert store.load_latest()["step"] == 1
    assert "refused" in warnings[0]
    assert not (tmp_path / "ran").exists()


def test_export_round_trip_and_damage(tmp_path):
    path = tmp_path / "export.safetensors"
    digest = save_export(path, {"b": torch.arange(3), "a": torch.randn(2, 2)}, {"kind": "x"})
    tensors, about = load_export(path, "fix it")
    assert tensors["b"].tolist() == [0, 1, 2]
    assert about == {"kind": "x", "sha256": digest} == read_about(path, "fix it")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"checksum differs.*fix it"):
        load_export(path, "fix it")
    path.write_bytes(content[:20])
    with pytest.raises(UserError, match=r"damaged.*fix it"):
        load_export(path, "fix it")
    path.unlink()
    with pytest.raises(UserError, match="missing: fix it"):
        load_export(path, "fix it")


def test_an_export_is_what_safetensors_reads(tmp_path):
    kinds = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.uint8]
    tensors = {str(i): torch.arange(3 + i).to(kind) for i, kind in enumerate(kinds)}
    tensors |= {"flag": torch.tensor([True, False]), "scalar": torch.tensor(7.0), "empty": torch.zeros(0, 2)}
    save_export(tmp_path / "e.safetensors", tensors, {"kind": "x"})
    found = load_file(tmp_path / "e.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_file_is_on_the_disk_before_it_gets_its_name_and_the_name_before_the_call_returns(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, os.replace

    def synced(number):
        done.append("folder" if stat.S_ISDIR(os.fstat(number).st_mode) else "file")
        fsync(number)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", lambda *paths: done.append("named") or replace(*paths))
    write_atomically(tmp_path / "file", b"new")
    assert done == ["file", "named", "folder"]


def test_an_interrupted_write_leaves_no_temporary_file(tmp_path, monkeypatch):
    def stopped(descriptor):
        raise Interrupted(15)

    monkeypatch.setattr(os, "fsync", stopped)
    with pytest.raises(Interrupted):
        write_atomically(tmp_path / "file", b"new")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [None, b"", b"{", b"[1]", b"\xff", b"3"])
def test_a_json_file_that_is_missing_or_damaged_is_read_as_empty(content, tmp_path):
    path = tmp_path / "kept.json"
    if content is not None:
        path.write_bytes(content)
    assert read_json(path) == {}
    path.write_text('{"a": 1}')
    assert read_json(path) == {"a": 1}
