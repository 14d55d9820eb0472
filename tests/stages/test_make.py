"""What is typed wrong for Make or a command is one line before anything runs, and no order of words matters."""

import os
import shutil
import subprocess

import pytest

from tests.conftest import HERE, SMOKE, make
from tests.helpers import assert_one_line


@pytest.mark.parametrize(
    ("value", "fresh"), [("1", True), ("yes", True), *((no, False) for no in ("0", "n", "No", "false", "Off", "none"))]
)
def test_fresh_means_what_it_says(value, fresh):
    said = make("vae", "-n", f"CONFIG={SMOKE}", f"FRESH={value}").stdout
    (line,) = (line for line in said.splitlines() if " -m stages.vae " in line)
    assert ("--fresh" in line) == fresh


@pytest.mark.parametrize("target", ["sample", "progress", "samplers"])
def test_a_model_that_is_none_is_one_line_and_nothing_is_trained(tmp_path, target):
    result = make(target, f"CONFIG={SMOKE}", "MODEL=gna", f"SET=root={tmp_path}")
    assert_one_line(result.returncode, result.stdout + result.stderr, "gna", "ldm")
    assert "No rule" not in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "settings", "said"),
    [
        (["ddpm"], "ddpm=null", "has no section ddpm; configs/ddpm-multiply-add.yaml has one"),
        (["onestep"], "onestep=null", "has no section onestep"),
        (["onestep"], "eval.sampler=ancestral", "set eval.sampler=ddim"),
        (["onestep"], "ldm.prediction=noise", "train the LDM with ldm.prediction=v"),
        (["eval"], "models=[ldm,onestep] eval.eta=0.5", "set eval.sampler=ddim eval.eta=0.0"),
        (["sample", "MODEL=onestep"], "onestep=null", "has no section onestep"),
        (["samplers", "MODEL=ddpm"], "ddpm=null", "has no section ddpm"),
        (["placed", "FLAGS=--labels 'pink cube'"], "", "unknown object 'pink cube'"),
        (["placed", "FLAGS=--labels 'red cube at 0.3 0.6'"], "", "leave the places out"),
        (["placed"], "ldm.network.places=false", "no model here takes places; set ldm.network.places=true"),
        (["held-out"], "models=[ddpm]", "has neither ldm nor gan"),
    ],
)
def test_what_can_be_known_is_checked_before_anything_is_trained_for_it(tmp_path, words, settings, said):
    result = make(*words, f"CONFIG={SMOKE}", f"SET=root={tmp_path} {settings}")
    assert_one_line(result.returncode, result.stdout + result.stderr, said)
    assert list(tmp_path.iterdir()) == []


def test_a_finished_generator_of_one_step_is_not_refused_for_how_the_ldm_samples_now(stage, tmp_path):
    arguments = ("onestep", f"root={tmp_path}", "eval.eta=0.5", "--check")
    assert_one_line(*stage(*arguments), "set eval.sampler=ddim")
    (tmp_path / "smoke/onestep").mkdir(parents=True)
    (tmp_path / "smoke/onestep/export.safetensors").touch()
    assert stage(*arguments) == (0, "")
    assert_one_line(*stage(*arguments, "--fresh"), "set eval.sampler=ddim")


def test_set_up_touches_nothing_of_an_environment_that_is_only_linked(tmp_path):
    """In a folder of its own, with a Python that makes no environment."""
    shutil.copy(HERE / "Makefile", tmp_path)
    other, ready, python = tmp_path / "other", tmp_path / "other/.ready", tmp_path / "python"
    other.mkdir()
    ready.touch()
    (tmp_path / ".venv").symlink_to(other, target_is_directory=True)
    (tmp_path / "requirements.lock").touch()
    os.utime(ready, (0, 0))  # older than the lock file: set up again
    python.write_text('#!/bin/sh\n[ "$2" != venv ]\n')
    python.chmod(0o755)
    result = subprocess.run(
        ["make", "setup", f"PYTHON={python}"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 2 and "cannot make a virtual environment" in result.stderr
    assert ready.is_file() and not (tmp_path / ".venv").exists()


@pytest.mark.parametrize("place", range(3))
def test_flags_and_overrides_come_in_any_order(stage, tmp_path, place):
    words = ["data.folder=/nowhere", f"root={tmp_path}"]
    words.insert(place, "--fresh")
    assert_one_line(*stage("ldm", *words), "/nowhere: no such data folder")
