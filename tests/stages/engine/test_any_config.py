"""Any text in a configuration or an override gives a Config or a one-line error, never a traceback."""

from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.engine.config import load
from stages.engine.errors import UserError
from stages.engine.schema import Config, flatten
from tests.conftest import SMOKE

ANY = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
KEYS = sorted(flatten(load(SMOKE).model_dump(mode="json")))
TRICKY = ["", "[", "{", "{a: b}", "null", "~", ".nan", "-.inf", "0x10", "1e999", "1_0", "2001-01-01", "!!binary aa=="]
TRICKY += ["!!python/name:os.system", "&a [*a]", "<<: 1", "? [1]", "9" * 5000, "\0", "yes", "[[[]]]", "{1: {2: 3}}"]
TEXT = st.text(max_size=30)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.binary(max_size=4) | st.dates()
TREES = st.recursive(
    SCALARS, lambda t: st.lists(t, max_size=3) | st.dictionaries(st.integers() | TEXT, t, max_size=3), max_leaves=6
)


def assert_config_or_line(path, overrides=()):
    try:
        assert isinstance(load(path, list(overrides)), Config)
    except UserError as error:
        text = str(error)
        assert text and text.isprintable()


def key_like():
    """Generates an existing key, part of one, a key that is too deep, or any text."""
    return st.sampled_from(KEYS) | st.sampled_from(KEYS).map(lambda k: k.rpartition(".")[0]) | TEXT | st.just("vae..x")


@ANY
@given(st.lists(st.tuples(key_like(), st.sampled_from(TRICKY) | TREES.map(str) | TEXT), min_size=1, max_size=3))
def test_any_override(pairs):
    assert_config_or_line(SMOKE, [f"{key}={value}" for key, value in pairs])


@ANY
@given(st.dictionaries(st.sampled_from([*Config.model_fields, "extends"]) | TEXT | st.integers(), TREES, max_size=4))
def test_any_tree(tmp_path, content):
    path = tmp_path / "any.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8", errors="surrogatepass")
    assert_config_or_line(path)


@ANY
@given(st.sampled_from(KEYS), TREES)
def test_any_value_in_a_whole_file(tmp_path, key, value):
    content = yaml.safe_load(Path(SMOKE).read_text())
    target, *path = content, *key.split(".")
    for part in path[:-1]:
        target = target.setdefault(part, {})
    target[path[-1]] = value
    (tmp_path / "any.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    assert_config_or_line(tmp_path / "any.yaml")


@ANY
@given(st.binary(max_size=60) | TEXT.map(lambda t: t.encode(errors="surrogatepass")))
def test_any_bytes(tmp_path, content):
    (tmp_path / "any.yaml").write_bytes(content)
    assert_config_or_line(tmp_path / "any.yaml")


@pytest.mark.parametrize("key", ["root", "device", "data.folder", "evaluator.checkpoint", "reported"])
def test_names_that_no_file_can_have(key):
    with pytest.raises(UserError, match=key):
        load(SMOKE, [f"{key}=a\0b"])


@pytest.mark.parametrize("name", ["\0", "a" * 5000, "x\x1b[31m\ny"])
def test_strange_file_names(name):
    with pytest.raises(UserError) as caught:
        load(name)
    assert str(caught.value).isprintable()
