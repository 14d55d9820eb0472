"""Files of the project's own that hold valid JSON of another kind are taken as missing, or refused in one line."""

import argparse
from contextlib import ExitStack

import pytest
import torch

from stages.engine import provenance
from stages.engine.command import Context
from stages.engine.config import load
from stages.engine.errors import UserError
from stages.experiments.plan import Paces
from stages.experiments.reproduce import folder_of, read_results, result_file
from stages.experiments.systems import SYSTEMS
from stages.render import _settings_of
from tests.conftest import SMOKE


@pytest.fixture
def context(tmp_path):
    config = load(SMOKE, [f"root={tmp_path}"])
    return Context(config, torch.device("cpu"), torch.float32, argparse.Namespace(config=SMOKE), 0.0, ExitStack())


DEEP = pytest.param("[" * 100_000, id="deep")  # deeper than Python's parser goes
OTHERS = ["5", "null", "[]", "[[1, 2]]", '{"provenance": null}', '{"provenance": [[1, 2]]}', '{"provenance": {}}', "{"]
OTHERS += [DEEP]


@pytest.mark.parametrize("text", [*OTHERS, '{"provenance": {"parents": []}}', '{"provenance": {"parents": null}}'])
def test_such_a_report_is_no_report_of_these_pictures(context, monkeypatch, text):
    now = {"data_sha256": "d", "test_sets_sha256": "t", "parents": {}, "precision": "float32"}
    monkeypatch.setattr(provenance, "provenance_of", lambda *unused: now)
    monkeypatch.setattr(provenance, "_digest_of_sets", lambda *unused: "s")
    report = context.folder("eval") / "report.json"
    report.parent.mkdir(parents=True)
    report.write_text(text)
    assert not provenance.is_current(context, None, {})


@pytest.mark.parametrize("text", OTHERS)
def test_such_rows_and_paces_are_measured_again(context, text):
    key = next(iter(SYSTEMS))
    for path in (folder_of(context) / "report.json", result_file(context, key)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert key not in read_results(context)
    Paces(folder_of(context) / "report.json", lambda: None)


@pytest.mark.parametrize("text", ["5", "null", "[]", "{", DEEP])
def test_such_settings_of_scenes_are_refused(tmp_path, text):
    (tmp_path / "render.json").write_text(text)
    with pytest.raises(UserError, match="is damaged"):
        _settings_of(tmp_path)
