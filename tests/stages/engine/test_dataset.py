"""Packs that are larger than memory, or than the device's."""

import os

import pytest
import torch

from data.labels import CLEVR
from stages.engine import dataset
from stages.engine.dataset import Dataset, drawn_rows, on_disk
from stages.engine.errors import UserError


def test_an_array_on_disk_is_zeros_takes_values_and_leaves_no_file(tmp_path):
    array = on_disk(tmp_path / "packs", 5, 3, 2)
    assert (array.shape, array.dtype, int(array.sum())) == ((5, 3, 2), torch.uint8, 0)
    array[2] = 7
    assert int(array.sum()) == 42
    assert list((tmp_path / "packs").iterdir()) == []


def test_a_full_disk_is_met_before_the_first_picture(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(UserError, match=r"12288 bytes into .*No space left.*free space"):
        on_disk(tmp_path, 1, 3, 64, 64)


@pytest.mark.gpu
def test_pictures_that_are_too_many_for_the_device_are_brought_there_by_batch(monkeypatch):
    images, device = torch.arange(4 * 3 * 64 * 64).view(4, 3, 64, 64).to(torch.uint8), torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1000, 10**9))
    kept = dataset.placed(images, device)
    assert kept.device.type == "cpu"
    labels = torch.zeros(4, 24, device=device)
    few = Dataset(kept, labels, images[:1].to(device), labels[:1], {}, CLEVR, "", None)
    index = torch.tensor([3, 1], device=device)
    assert torch.equal(few.pictures(index).cpu(), dataset.to_unit(images[[3, 1]]))


def test_pictures_are_drawn_once_or_as_often_as_they_have_labels():
    labels = torch.tensor([[1.0, 0, 1, 1], [0, 1, 0, 0], [1, 1, 0, 0]])
    assert drawn_rows(labels, "uniform").tolist() == [0, 1, 2]
    assert drawn_rows(labels, "by-labels").tolist() == [0, 0, 0, 1, 2, 2]
