"""Which configuration and which models an experiment's folder stands for."""

import os

import pytest

from stages.engine.errors import UserError
from stages.use.find import available, configuration_of
from tests.conftest import HERE, SMOKE
from tests.stages.handful import context_with


def trained(root, name, model, when=0):
    """Writes what a finished training leaves: its configuration, begun at that second, and an export."""
    folder = root / name / model
    folder.mkdir(parents=True)
    text = (HERE / SMOKE).read_text().replace("seed: 1", f"seed: {1000 + when}", 1)
    (folder / "config.yaml").write_text(f"name: other\n{text}")
    os.utime(folder / "config.yaml", (when, when))
    (folder / "export.safetensors").touch()


def test_a_folder_s_configuration_is_that_of_the_model_that_was_trained_last(tmp_path):
    for model, when in (("ldm", 50), ("gan", 70), ("ddpm", 60)):
        trained(tmp_path, "mine", model, when)
    config, file = configuration_of(tmp_path / "mine")
    assert (file.parent.name, config.seed, config.name, config.root) == ("gan", 1070, "mine", str(tmp_path))
    (tmp_path / "mine/gan/export.safetensors").unlink()  # begun again, and not finished
    assert configuration_of(tmp_path / "mine")[1].parent.name == "ddpm"
    (tmp_path / "mine/config.yaml").write_bytes((tmp_path / "mine/ldm/config.yaml").read_bytes())
    assert configuration_of(tmp_path / "mine", ["eval.steps=7"])[0].eval.steps == 7
    assert configuration_of(tmp_path / "mine")[1] == tmp_path / "mine/config.yaml"
    with pytest.raises(UserError, match=r"no trained model in .*nobody; there are mine"):
        configuration_of(tmp_path / "nobody")


def test_the_model_that_draws_comes_first_wherever_it_is_taken_from(tmp_path):
    for name, model in (("smoke", "ldm"), ("smoke", "gan"), ("other", "ddpm")):
        trained(tmp_path, name, model)
    assert available(context_with(f"root={tmp_path}").config) == ("ldm", "gan")
    assert available(context_with(f"root={tmp_path}", "models=[gan]").config) == ("gan", "ldm")
    used = context_with(f"root={tmp_path}", "uses={ddpm: other}", "models=[ddpm]").config
    assert available(used) == ("ddpm", "ldm", "gan")
    assert available(context_with(f"root={tmp_path}", "uses={ldm: other}").config) == ("gan",)
