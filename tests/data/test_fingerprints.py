"""Quick keys follow whatever a pack depends on."""

import json
import os
import shutil
import zipfile

import pytest

from data.fingerprints import fingerprint, outline
from data.images import VERSION
from data.labels import DataError
from tests.data.folder import write_folder, zip_pictures


def test_two_folders_of_pictures_are_one_too_many(tmp_path):
    folder = write_folder(tmp_path / "d")
    (folder / "images.zip").write_bytes(b"")
    with pytest.raises(DataError, match=r"holds both images\.zip and iclevr; remove"):
        fingerprint(folder, 3)


def test_fingerprint_follows_the_content(tmp_path):
    folder = write_folder(tmp_path / "d")
    before = fingerprint(folder, 3)
    assert fingerprint(folder, 3) == before
    assert fingerprint(folder, 4) != before
    assert fingerprint(folder, 3, 64) == before != fingerprint(folder, 3, 128)
    labels = json.loads((folder / "train.json").read_text())
    (folder / "train.json").write_text(json.dumps(labels | {max(labels): ["gray cube"]}))
    assert fingerprint(folder, 3) != before
    with pytest.raises(DataError, match="no such data folder"):
        fingerprint(tmp_path / "nowhere", 3)


@pytest.mark.parametrize("key", [fingerprint, outline])
@pytest.mark.parametrize("file", ["objects", "train", "validation", "places", "turns"])
def test_the_quick_keys_follow_each_file_of_labels(tmp_path, key, file):
    folder = write_folder(tmp_path / "d")
    found = set()
    for content in ("{}", '{"a": 0}'):
        (folder / f"{file}.json").write_text(content)
        found.add(key(folder, 3))
    assert len(found) == 2


def test_a_new_version_packs_again(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "d")
    before = fingerprint(folder, 3), outline(folder, 3)
    monkeypatch.setattr("data.fingerprints.VERSION", VERSION + 1)
    assert fingerprint(folder, 3) != before[0] and outline(folder, 3) != before[1]


def test_fingerprint_of_a_zip_depends_on_its_content(tmp_path):
    folder = write_folder(tmp_path / "d")
    zip_pictures(folder, "")
    shutil.rmtree(folder / "iclevr")
    before = fingerprint(folder, 3)
    os.utime(folder / "iclevr.zip", (0, 0))
    assert fingerprint(folder, 3) == before
    assert fingerprint(shutil.copytree(folder, tmp_path / "elsewhere"), 3) == before
    with zipfile.ZipFile(folder / "iclevr.zip") as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(folder / "iclevr.zip", "w") as archive:
        for name in content:  # every picture becomes the last one, so that names and sizes may agree
            archive.writestr(name, content[max(content)])
    assert fingerprint(folder, 3) != before
