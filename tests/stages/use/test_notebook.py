"""The example notebook runs from its first cell to its last, and says what the library needs."""

import json
import sys
import tomllib

import pytest
from PIL import Image

from stages import load
from stages.use import library
from stages.use.find import MANIFEST, SHIPPED
from tests.conftest import HERE

NOTEBOOK = HERE / "docs/example.ipynb"


def test_it_is_valid_and_holds_no_outputs():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4 and {cell["cell_type"] for cell in notebook["cells"]} == {"markdown", "code"}
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    for cell in notebook["cells"]:
        assert cell["cell_type"] == "markdown" or (cell["outputs"], cell["execution_count"]) == ([], None)
    first = "".join(notebook["cells"][0]["source"])
    assert "git clone" in first and "pip install -q -r docs/requirements.txt" in first


def test_every_cell_runs(request, capsys, monkeypatch):
    """With the weights in the box, or if there are none with the smoke experiment's."""
    if not (HERE / SHIPPED / MANIFEST).is_file():
        smoke = request.getfixturevalue("chain") / "smoke"
        monkeypatch.setattr(library, "load", lambda name: load(smoke))
    monkeypatch.chdir(HERE / "docs")
    monkeypatch.setattr(sys, "path", [*sys.path])
    space: dict = {}
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), space)
    said = capsys.readouterr().out
    assert "red cube" in said and "step 4 of 4" in said and "picture 3: cyan sphere" in said
    assert len(space["placed"]) == 4 and space["frames"][-1].step == 8
    assert isinstance(space["side_by_side"](space["pictures"]), Image.Image)


def test_the_librarys_needs_are_the_projects():
    lines = (HERE / "docs/requirements.txt").read_text().splitlines()
    with open(HERE / "pyproject.toml", "rb") as file:
        assert {line for line in lines if not line.startswith("#")} <= {*tomllib.load(file)["project"]["dependencies"]}


@pytest.mark.parametrize("name", ["load", "UserError"])
def test_the_package_gives_the_librarys_names(name):
    import stages

    assert getattr(stages, name) is getattr(library, name)
    with pytest.raises(AttributeError):
        stages.loads  # noqa: B018
