"""Settings that cannot learn, or whose figures mean nothing, are refused or warned of before anything runs."""

import os
import sys
import time
import tracemalloc

import pytest
import yaml

from stages.commands import COMMANDS
from stages.engine.arguments import read_arguments
from stages.engine.config import load
from stages.engine.errors import UserError
from stages.engine.learnable import refuse_unlearnable, starts_from_a_picture
from stages.engine.rules import ignored
from tests.conftest import HERE, SMOKE

CONFIG = HERE / SMOKE


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["eval.seeds=[0,0]"], "eval.seeds [0, 0] repeats an entry"),
        (["models=[ldm,ldm]"], "repeats an entry"),
        (["models=[ddpm]", "ddpm=null"], "there is no section ddpm"),
        (["vae.codebook.decay=1.0"], "vae.codebook.decay should be less than 1"),
        (["vae.residual.decay=1.0"], "vae.residual.decay should be less than 1"),
        (["ldm.label_dropout=1.0"], "ldm.label_dropout should be less than 1"),
        (["ldm.place_dropout=1.0"], "ldm.place_dropout should be less than 1"),
        (["ldm.network.dropout=1.0"], "ldm.network.dropout should be less than 1"),
        (["gan.auxiliary_schedule=rising", "gan.critic.condition=projection"], "needs a critic with a label loss"),
        (["gan.auxiliary=0", "gan.critic.condition=auxiliary"], "without its label loss"),
        (["gan.auxiliary=0", "gan.critic.condition=projection+contrast"], "without its label loss"),
        (["gan.auxiliary=0", "gan.critic.condition=projection+auxiliary"], "without its label loss"),
        (["gan.critic.read=places", "gan.critic.pool=sum", "gan.critic.condition=projection+contrast"], "not support"),
        (["ldm.network.places=true", "ldm.apart=0.2"], "ldm.apart=0.2 is for a network that is told no places"),
        (
            ["ldm.network.places=false", "ldm.network.turns=true"],
            "ldm.network.turns=true needs ldm.network.places=true",
        ),
        (["vae.unquantized=1.0"], "teaches the decoder no codes"),
        (["data.conditions=[test,train]"], "data.conditions lists 'train', which names no file of label sets"),
        (["data.conditions=[held_out]"], "data.conditions lists 'held_out'"),
        (["ldm.network.condition=vector"], "ldm.network.condition=vector is one token for the whole set"),
        (["ddpm.network=patches", "ddpm.places=true"], "for patches set ddpm.unet.places=true"),
        (["vae.codebook.codes=1"], "vae.codebook.codes should be greater than or equal to 2"),
        (["vae.residual.codes=1"], "vae.residual.codes should be greater than or equal to 2"),
        (["ldm.network.head_width=12", "ldm.network.channels=16"], "head_width (12) must divide"),
        (["reported.lmd=[0.1,0.2]"], "reported.lmd"),
        (["gan.generator.channels=[128]"], "too few"),
        (["ldm.steps=1:30"], "ldm.steps should be a whole number"),
        (["models=ldm"], "models should be a list, such as"),
        (["eval.seeds=3"], "eval.seeds should be a list, such as"),
        (["deterministic=3"], "deterministic should be true or false"),
        (["models=[]"], "models should name at least one, not []"),
        (["ldm.betas=[0.1,0.2,0.3]"], "ldm.betas should have two numbers, such as [0.5, 0.9], not [0.1, 0.2, 0.3]"),
        (["ldm.compile=x"], "ldm.compile should be false, true or 'cuda-graphs'"),
        (["ldm.betas=[0.9]"], "ldm.betas should have two numbers"),
    ],
)
def test_what_means_nothing_is_refused(overrides, words):
    with pytest.raises(UserError) as fault:
        load(CONFIG, overrides)
    assert words in str(fault.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["models=[ddpm]", "eval.sampler=ancestral", "eval.steps=50"],  # it takes all of its 12 timesteps
        ["models=[gan]", "eval.steps=101"],
        ["models=[gan]", "ldm.label_dropout=0.0"],
        ["vae.unquantized=1.0", "vae.decodes=latents"],
        ["ldm.network.condition=vector", "ldm.network.order=false", "ldm.network.places=false"],
    ],
)
def test_what_other_settings_make_harmless_is_accepted(overrides):
    load(CONFIG, overrides)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["eval.sampler=ancestral", "eval.eta=0.5"], "eval.eta=0.5"),
        (["eval.sampler=ddim", "eval.clip=1.0"], "eval.clip=1"),
        (["ldm.prediction=mean", "eval.sampler=ddim"], "amplifies errors"),
        (["gan.loss=hinge", "gan.penalty_share=0.5"], "gan.penalty_share"),
        (["gan.loss=hinge", "gan.penalty=5.0"], "gan.penalty=5.0"),
        (["gan.loss=lsgan", "gan.weight_clip=0.1"], "gan.weight_clip=0.1"),
        (["gan.gamma=[0.1,0.1]"], "gan.gamma=[0.1, 0.1]"),
        (["eval.sampler=ancestral", "eval.spacing=uniform"], "eval.spacing=uniform"),
        (["eval.guidance=1", "eval.interval=[0.1,0.9]"], "eval.interval=[0.1, 0.9]"),
        (["gan.space=latents", "gan.stem=2"], "gan.stem=2"),
        (["eval.places=unknown", "eval.apart=0.2"], "eval.apart=0.2"),
        (["evaluator.checkpoint=x.pth", "uses.evaluator=other"], "evaluator.checkpoint"),
        (["gan.auxiliary=2.0", "gan.critic.condition=projection"], "gan.auxiliary=2.0"),
        (["gan.generator.object_noise=9"], "gan.generator.object_noise=9"),
        (["ldm.bound=true", "ldm.min_snr=3.0"], "ldm.min_snr=3.0 has no effect: ldm.bound"),
        (["ldm.log_snr=[0.0,2.0]", "ldm.min_snr=3.0"], "ldm.min_snr=3.0 has no effect: ldm.log_snr"),
        (["ldm.network.places=false", "ldm.place_dropout=0.5"], "ldm.place_dropout=0.5"),
        (["ldm.network.places=false", "ldm.apart=0.2", "ldm.place_dropout=0.5"], "ldm.place_dropout=0.5"),
        (["ddpm.network=patches", "ddpm.width=64"], "ddpm.width=64"),
        (["ddpm.bottleneck=9"], "ddpm.bottleneck=9"),
        (["onestep.critic.weight=0.0", "onestep.critic.channels=9"], "onestep.critic.channels=9"),
    ],
)
def test_what_is_ignored_is_said(overrides, words):
    assert not ignored(load(CONFIG))
    (said,) = ignored(load(CONFIG, overrides))
    assert words in said


@pytest.mark.parametrize("path", sorted((HERE / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_recipes_set_nothing_that_is_ignored(path):
    assert ignored(load(path)) == []


def test_numbers_are_decimal():
    config = load(CONFIG, ["ldm.steps=0100", "ldm.learning_rate=1e-3", "vae.foreground=5.", "gan.penalty=.5"])
    assert (config.ldm.steps, config.ldm.learning_rate, config.vae.foreground, config.gan.penalty) == (
        100,
        1e-3,
        5,
        0.5,
    )


def test_a_tilde_is_the_home_folder():
    config = load(CONFIG, ["root=~/runs", "data.folder=~/data"])
    assert config.root == os.path.expanduser("~/runs")
    assert config.data.folder == os.path.expanduser("~/data")


def test_a_tilde_is_the_home_folder_on_the_command_line_too(monkeypatch):
    """Make quotes what it passes on, so that no shell has replaced it."""
    home = os.path.expanduser("~")
    for command, flag in (("use.sample", "out"), ("use.export", "out"), ("use.release", "to")):
        told = ["stage", "--config", "~/own.yaml", f"--{flag}", "~/there/x.png"]
        monkeypatch.setattr(sys, "argv", told + (["--labels", "red cube"] if command == "use.sample" else []))
        arguments = read_arguments(COMMANDS[command])
        assert arguments.config == f"{home}/own.yaml"
        assert getattr(arguments, flag) == f"{home}/there/x.png"


def test_an_override_changes_one_section_of_two_that_share_an_alias(tmp_path):
    content = yaml.safe_load(CONFIG.read_text())
    file = tmp_path / "shared.yaml"
    text = yaml.dump({"vae": content["vae"], "gan": content["gan"]})
    file.write_text(text + "ldm: &one {steps: 50, batch: 4, learning_rate: 1e-3}\nddpm: *one\n")
    config = load(file, ["ldm.steps=7000"])
    assert (config.ldm.steps, config.ddpm.steps) == (7000, 50)


def doubled(opened, item, closed):
    """Returns lines of YAML that name a tree of 9^8 leaves by aliases."""
    first = f"a0: &a0 {opened}{item.format(name='x', i=0)}{closed}"
    rest = (", ".join(item.format(name=f"*a{i - 1}", i=n) for n in range(9)) for i in range(1, 9))
    return "\n".join([first, *(f"a{i}: &a{i} {opened}{leaves}{closed}" for i, leaves in enumerate(rest, 1))])


LISTS, SECTIONS = doubled("[", "{name}", "]"), doubled("{", "k{i}: {name}", "}")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param(f"{LISTS}\nname: *a8\nvae: *a8\n", "name should be text", id="lists"),
        pytest.param(f"{SECTIONS}\nname: x\nuses: *a8\n", "uses.k0 should be text", id="sections"),
        pytest.param(f"extends: base.yaml\n{SECTIONS}\nuses: *a8\n", "uses.k0 should be text", id="two files"),
        pytest.param("extends: base.yaml\nvae: &a {b: *a}\n", "vae.steps is missing", id="a circle in two files"),
        pytest.param("a: &a {<<: *a}\n", "<< is not supported", id="merge keys"),
        pytest.param("name: " + "[" * 60_000, "nested more than 20 levels", id="deep"),
        pytest.param("- " * 30_000, "nested more than 20 levels", id="deep without brackets"),
        pytest.param("name: " + "x" * 10**7, "more than 65536 bytes", id="large"),
        pytest.param("name: &a [*a]\n", "name should be text", id="a circle"),
    ],
)
def test_a_hostile_file_is_one_short_line_at_once(tmp_path, text, words):
    """Within 1 s of the processor's time and 200 MiB, whatever the file's aliases stand for."""
    (tmp_path / "base.yaml").write_text(f"{SECTIONS}\nb: &b {{b: *b}}\nvae: *b\n")
    (tmp_path / "hostile.yaml").write_text(text)
    began = time.process_time()
    with pytest.raises(UserError) as fault:
        load(tmp_path / "hostile.yaml")
    assert time.process_time() - began < 1
    tracemalloc.start()  # slows it down
    with pytest.raises(UserError):
        load(tmp_path / "hostile.yaml")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200 * 2**20
    assert words in str(fault.value)
    assert len(str(fault.value).removeprefix(str(tmp_path))) < 200


LONG, SMOKE_COPY = "x" * 60_000, "smoke.yaml"


@pytest.mark.parametrize(
    ("text", "start", "end"),
    [
        (f"? {LONG}\n", "unknown key xxx", "the keys here are "),
        (f"uses: {{vae: {LONG}/}}\n", "uses.vae=xxx", "such as vae: iclevr"),
        (f"data: {{conditions: [{LONG}/]}}\n", "data.conditions lists 'xxx", "such as test"),
        (f"models: [{', '.join(['ldm'] * 9000)}]\n", "models ['ldm', 'ldm'", "give each once"),
        (f"seed: *{LONG}\n", "undefined alias 'xxx", "xxx')"),
        (f"seed: !{LONG} 1\n", "for the tag '!xxx", "xxx')"),
    ],
    ids=["key", "experiment", "label sets", "models", "alias", "tag"],
)
def test_a_message_quotes_a_part_of_what_is_long(tmp_path, text, start, end):
    """It keeps its start, which says where, and its end, which says what to do."""
    file = tmp_path / "long.yaml"
    file.write_text(f"extends: {SMOKE_COPY}\n{text}")
    (tmp_path / SMOKE_COPY).write_text(CONFIG.read_text())
    with pytest.raises(UserError) as fault:
        load(file)
    said = str(fault.value)
    assert str(file) in said and start in said and len(said) < 2100
    assert end in said[-800:]


@pytest.mark.parametrize("bell", ["[50.0,0.01]", "[30.0,1.0]"])
def test_a_bell_off_the_schedule_is_refused(bell):
    refuse_unlearnable(load(CONFIG))
    with pytest.raises(UserError, match=r"ldm\.log_snr"):
        refuse_unlearnable(load(CONFIG, [f"ldm.log_snr={bell}"]))


@pytest.mark.parametrize(
    ("overrides", "warned"),
    [
        (["ldm.schedule=beta-cosine", "ldm.timesteps=100"], True),
        (["ldm.schedule=beta-cosine", "ldm.timesteps=500"], False),
        (["ldm.schedule=linear", "ldm.timesteps=12", "ldm.prediction=noise", "eval.sampler=ancestral"], True),
        (["ldm.schedule=cosine", "ldm.timesteps=1000"], False),
    ],
)
def test_sampling_that_starts_from_a_picture_is_warned_of(overrides, warned):
    assert bool(starts_from_a_picture(load(CONFIG, ["models=[ldm]", *overrides]))) == warned
