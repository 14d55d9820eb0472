"""Any content of a user's label files gives labels or a one-line error, never a traceback."""

import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.labels import CLEVR, DataError, read_conditions, read_picture_labels, read_vocabulary
from data.places import read_places

ANY = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXT = st.text(max_size=12) | st.sampled_from(CLEVR.names)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda t: st.lists(t, max_size=4) | st.dictionaries(TEXT, t, max_size=4),
    max_leaves=12,
)
NEARLY = (  # the right shape with anything in place of names and indices
    st.dictionaries(TEXT, st.integers(-1, 4), max_size=4)
    | st.lists(st.lists(TEXT, max_size=4), max_size=4)
    | st.dictionaries(TEXT, st.lists(TEXT, max_size=4), max_size=4)
    | st.dictionaries(
        st.sampled_from(["a.png", "b.png"]),
        st.lists(st.none() | st.lists(st.floats(-0.1, 1.1) | st.integers(-1, 2) | JSON, max_size=3), max_size=3),
    )
)
NUMBER = st.floats().map(str) | TEXT
ASKED = st.tuples(TEXT, st.lists(NUMBER, max_size=3)).map(lambda t: f"{t[0]} at {' '.join(t[1])}")
READERS = {
    "objects.json": read_vocabulary,
    "test.json": lambda path: read_conditions(path, CLEVR),
    "train.json": lambda path: read_picture_labels(path, CLEVR),
    "places.json": lambda path: read_places(path, {"a.png": [0], "b.png": [1, 2]}),
}


def assert_read_or_line(path):
    try:
        assert READERS[path.name](path) is not None
    except DataError as error:
        assert path.name in str(error)


@ANY
@given(st.sampled_from(list(READERS)), JSON | NEARLY)
def test_any_json(tmp_path, name, content):
    (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
    assert_read_or_line(tmp_path / name)


@ANY
@given(st.sampled_from(list(READERS)), st.binary(max_size=40) | JSON.map(lambda c: json.dumps(c).encode()[:-1]))
def test_any_bytes(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert_read_or_line(tmp_path / name)


@ANY
@given(st.lists(TEXT | ASKED, max_size=4).map(", ".join) | st.text())
def test_any_label_text(text):
    try:
        objects, places = CLEVR.parse(text)
        assert len(objects) == len(places) > 0
    except DataError as error:
        assert "labels" in str(error)
