import re
from pathlib import Path

import pytest

from stages.engine.config import load
from stages.engine.errors import UserError
from stages.engine.learnable import refuse_unlearnable
from stages.engine.rules import ignored
from stages.engine.schema import flatten

HERE = Path(__file__).resolve().parents[3]
SMOKE = HERE / "configs/smoke.yaml"


@pytest.mark.parametrize("path", sorted((HERE / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_configuration_loads(path):
    named = {"scenes": "scenes-trained"}  # checkpoints/scenes holds the weights that come with the project
    assert load(path).name == named.get(path.stem, path.stem)


def test_overrides_and_plain_exponents():
    config = load(
        SMOKE, ["ldm.steps=2000", "ldm.learning_rate=1e-4", "eval.seeds=[3, 4]", "vae.codebook.codes=16", "name=x"]
    )
    assert (config.ldm.steps, config.ldm.learning_rate, config.eval.seeds) == (2000, 1e-4, (3, 4))
    assert (config.vae.codebook.codes, config.name) == (16, "x")


def test_text_values_are_taken_as_written():
    config = load(SMOKE, ["data.folder=/some/where: #1", "name=7"])
    assert (config.data.folder, config.name) == ("/some/where: #1", "7")
    assert load(SMOKE, ["data.folder=null"]).data.folder is None


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("ldm.stepz=3", "unknown key ldm.stepz; did you mean steps?"),
        ("ldn.steps=3", "unknown key ldn; did you mean ldm?"),
        ("vae.codebook.code=3", "unknown key vae.codebook.code; did you mean codes?"),
        ("ldm.steps=many", "ldm.steps should be a whole number"),
        ("ldm.steps=1.5", "ldm.steps should be a whole number"),
        ("ldm.steps=0", "ldm.steps should be greater than 0"),
        ("ldm.steps=true", "ldm.steps should be a whole number"),
        ("ldm.prediction=velocity", "ldm.prediction should be 'noise', 'v', 'x0' or 'mean'"),
        ("ldm.learning_rate=.nan", "ldm.learning_rate"),
        ("ldm.warmup=99", r"ldm.warmup \(99\) must be below"),
        ("vae.channels=[8, 8]", "needs three numbers"),
        ("vae=3", "vae should be a section"),
        ("eval.seeds=[]", "eval.seeds is empty"),
        ("eval.interval=[0.9, 0.1]", "two rising numbers"),
        ("ldm.network.heads=2", "give one of"),
        ("name=../x", "plain folder name"),
        ("name=packs", "'packs', is the name of a folder with another use"),
        ("name=reproduce", "'reproduce', is the name of a folder with another use"),
        ("ldm.network.channels=17", "must be even"),
        ("ldm.network.head_width=5", "heads must divide"),
        ("ldm.betas=[0.9, 1.5]", "ldm.betas"),
        ("vae.channels=[0, 8, 8]", "vae.channels"),
        ("vae.codebook.start=6", r"vae.codebook.start \(6\) must be below"),
        ("eval.steps=101", "exceeds ldm.timesteps"),
        ("ldm.label_dropout=0.0", "needs ldm.label_dropout above 0"),
        ("steps", "write section.key=value"),
        ("seed.x=3", "not a section"),
        ("ldm.steps=[", "not valid YAML"),
    ],
)
def test_a_wrong_override_is_one_line_with_the_key(override, fault):
    with pytest.raises(UserError, match=fault) as caught:
        load(SMOKE, [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "mapping of sections"),
        (b"- 1", "mapping of sections"),
        (b"a: [", "not valid YAML"),
        (b"seed: 1\nseed: 2\n", "line 2: not valid YAML .*given twice"),
        (b"\xff\xfe", "not UTF-8"),
        (b"seed: 1\n", "vae is missing"),
        (b"x: !!python/object/apply:os.system [ls]", "not valid YAML"),
        (b"? [1, 2]\n: 3\n", "not a configuration|not valid YAML"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, content, fault):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=fault) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_lists_what_there_is(monkeypatch):
    monkeypatch.chdir(HERE)
    with pytest.raises(UserError, match=r"configs/demo\.yaml"):
        load("configs/nope.yaml")


def test_neutral_keys_are_no_part_of_a_runs_identity():
    flat = flatten(load(SMOKE).ldm, "ldm.")
    assert flat["ldm.network.channels"] == 16
    assert not any(key.endswith(("_every", "keep", "NEUTRAL")) for key in flat)
    every = {key for key in flatten(load(SMOKE).ddpm, "ddpm.") if key.endswith(("_every", "keep"))}
    assert every == {"ddpm.preview_every"}, "its previews decide when the learning rate falls"


PAGES = [HERE / "README.md", *sorted((HERE / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_the_documents_are_accepted(page):
    """Each `make ... CONFIG=FILE SET="..."` of a configuration that comes with the project."""
    for command in re.findall(r"make [^`\n]*", page.read_text()):
        path = re.search(r"CONFIG=(configs/[\w-]+\.yaml)", command)
        settings = re.search(r'SET="([^"]*)"', command)
        if settings and "DIR" not in settings[1] and "FILE" not in settings[1]:
            config = load(HERE / (path[1] if path else "configs/demo.yaml"), settings[1].split())
            refuse_unlearnable(config)
            assert ignored(config) == [], command


COMMENTED = [
    (p, s) for p in sorted((HERE / "configs").glob("*.yaml")) for s in re.findall(r'SET="([^"]*)"', p.read_text())
]


@pytest.mark.parametrize("path, settings", COMMENTED, ids=lambda value: getattr(value, "stem", value))
def test_the_settings_that_a_configurations_comments_name_are_accepted(path, settings):
    config = load(path, settings.split())
    refuse_unlearnable(config)
    assert ignored(config) == []
