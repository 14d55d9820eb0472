"""`make scenes` writes where the objects are, and how they are turned."""

import json

import pytest

from tests.data.folder import write_folder


@pytest.mark.parametrize("name", ["places.json", "turns.json"])
def test_places_and_turns_are_written_and_added_where_an_older_version_drew(stage, tmp_path, name):
    arguments = (f"root={tmp_path}", "render.scenes=2", "render.validation_scenes=1")
    status, said = stage("render", *arguments)
    assert status == 0, said
    folder = tmp_path / "smoke/render"
    content = (folder / name).read_bytes()
    rows = json.loads(content)
    assert [len(row) for row in rows.values()] == [1, 2, 3] * 3
    assert set(rows) == {path.name for path in (folder / "iclevr").iterdir()}
    (folder / name).unlink()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")}
    status, said = stage("render", *arguments)
    assert (status, f"how they are turned to {folder}: {name}\n" in said, "finished already" in said) == (0, True, True)
    assert (folder / name).read_bytes() == content
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")} == before, "nothing is drawn again"


def test_scenes_of_unknown_settings_get_no_places(stage, tmp_path):
    folder = write_folder(tmp_path / "smoke/render", places=False)
    assert stage("render", f"root={tmp_path}")[0] == 0
    assert not (folder / "places.json").exists() and not (folder / "turns.json").exists()
