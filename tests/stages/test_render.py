"""`make scenes` writes where the objects are."""

import json

from tests.data.folder import write_folder


def test_the_scenes_places_are_written_and_added_where_an_older_version_drew(stage, tmp_path):
    arguments = (f"root={tmp_path}", "render.scenes=2", "render.validation_scenes=1")
    status, said = stage("render", *arguments)
    assert status == 0, said
    folder = tmp_path / "smoke/render"
    content = (folder / "places.json").read_bytes()
    places = json.loads(content)
    assert [len(row) for row in places.values()] == [1, 2, 3] * 3
    assert set(places) == {path.name for path in (folder / "iclevr").iterdir()}
    (folder / "places.json").unlink()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")}
    status, said = stage("render", *arguments)
    assert (status, "wrote the places of the objects" in said, "finished already" in said) == (0, True, True)
    assert (folder / "places.json").read_bytes() == content
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")} == before, "nothing is drawn again"


def test_scenes_of_unknown_settings_get_no_places(stage, tmp_path):
    folder = write_folder(tmp_path / "smoke/render", places=False)
    assert stage("render", f"root={tmp_path}")[0] == 0
    assert not (folder / "places.json").exists()
