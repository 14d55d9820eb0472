"""The command line of `make export` is answered early, also where its extra is not installed."""

import subprocess
import sys
from argparse import Namespace

import pytest

from stages import commands
from stages.engine.config import load
from stages.engine.errors import UserError
from tests.conftest import HERE, SMOKE, make


def checked(out):
    commands.COMMANDS["use.export"].check(Namespace(out=out), load(SMOKE))


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(commands, "find_spec", lambda name: object())


@pytest.mark.parametrize("package", commands.EXPORT_NEEDS)
def test_a_missing_extra_is_one_line_with_what_installs_it(monkeypatch, package):
    monkeypatch.setattr(commands, "find_spec", lambda name: None if name == package else object())
    with pytest.raises(UserError, match=rf": {package}; run `make setup-export.*pip install .*requirements-export"):
        checked(None)


def test_a_folder_with_something_in_it_is_left_alone(installed, tmp_path):
    checked(str(tmp_path))
    (tmp_path / "mine.txt").write_text("mine")
    for taken in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(UserError, match="is not an empty folder"):
            checked(str(taken))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_command_line_is_checked_without_torch(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    code = (
        f"import sys; sys.argv[1:] = ['--out', {str(tmp_path)!r}];"
        "import stages.commands as c, stages.engine.arguments as a; from stages.engine.errors import UserError\n"
        "c.find_spec = str\n"
        "command = c.COMMANDS['use.export']\n"
        "try: a.read_configuration(command, a.read_arguments(command))\n"
        "except UserError as error: print(error)\n"
        "assert not {'torch', 'numpy', 'onnx'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True)
    assert result.returncode == 0 and "is not an empty folder" in result.stdout, result.stderr


def test_without_a_configuration_the_shipped_weights_are_written():
    shipped = "checkpoints/scenes/config.yaml"
    assert f'stages.use.export --config "{shipped}"' in make("export", "-n", f"SHIPPED={shipped}").stdout
    assert 'stages.use.export --config "configs/demo.yaml"' in make("export", "-n", "CONFIG=configs/demo.yaml").stdout
