"""The example notebook runs from its first cell to its last, and says what the library needs."""

import json
import sys
import tomllib

import pytest
from PIL import Image

from stages.use import library
from tests.conftest import HERE

NOTEBOOK = HERE / "docs/example.ipynb"


def test_it_is_valid_and_holds_no_outputs():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4 and {cell["cell_type"] for cell in notebook["cells"]} == {"markdown", "code"}
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    for cell in notebook["cells"]:
        assert cell["cell_type"] == "markdown" or (cell["outputs"], cell["execution_count"]) == ([], None)


def first_code() -> str:
    return "".join(json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"][1]["source"])


def test_alone_it_asks_for_the_repository_and_clones_it(tmp_path, monkeypatch):
    """As on Colab; pip is left out, which would fetch packages."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(SystemExit, match="set REPOSITORY"):
        exec(first_code(), {})
    commands = []
    monkeypatch.setattr("subprocess.run", lambda command, check: commands.append(command))
    exec(first_code().replace('REPOSITORY = ""', 'REPOSITORY = "https://git.example/x"'), {})
    clone, install = commands
    assert clone[:2] == ["git", "clone"] and "https://git.example/x" in clone
    assert install[1:4] == ["-m", "pip", "install"] and install[-1] == str(tmp_path / "scenes/docs/requirements.txt")
    assert sys.path[0] == str(tmp_path / "scenes")


def test_every_cell_runs(capsys, monkeypatch):
    """With the shipped weights."""
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
