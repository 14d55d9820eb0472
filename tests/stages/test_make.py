"""What is typed wrong for Make or a command is one line before anything runs, and no order of words matters."""

import pytest

from tests.conftest import SMOKE, make
from tests.helpers import assert_one_line


@pytest.mark.parametrize(
    ("value", "fresh"), [("1", True), ("yes", True), ("0", False), ("no", False), ("false", False)]
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


@pytest.mark.parametrize("place", range(3))
def test_flags_and_overrides_come_in_any_order(stage, tmp_path, place):
    words = ["data.folder=/nowhere", f"root={tmp_path}"]
    words.insert(place, "--fresh")
    assert_one_line(*stage("ldm", *words), "/nowhere: no such data folder")
