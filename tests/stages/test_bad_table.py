"""Bad data folders and configurations, as a table: the command gives one line and status 2, and changes nothing."""

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.folder import write_folder
from tests.helpers import assert_one_line

FIRST = "CLEVR_train_000000_0.png"


def text(name, content):
    """Returns a fault: the file `name` holds this text or these bytes."""

    def spoil(folder: Path) -> None:
        path = folder / name
        path.unlink(missing_ok=True)
        path.write_bytes(content) if isinstance(content, bytes) else path.write_text(content)

    return spoil


def changed(name, change):
    """Returns a fault: the JSON file `name` after change(content)."""

    def spoil(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(change(content)))

    return spoil


def gone(name):
    return lambda folder: (folder / name).unlink()


def loop(name):
    """Returns a fault: a symbolic link that points to itself."""

    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(name)

    return spoil


def picture(make):
    """Returns a fault: the first picture is make()'s, saved with make()'s options."""

    def spoil(folder: Path) -> None:
        image, options = make()
        image.save(folder / "iclevr" / FIRST, "PNG", **options)

    return spoil


def animated():
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    return frames[0], {"save_all": True, "append_images": frames[1:]}


def zipped(members, renamed=lambda name: name):
    """Returns a fault: the pictures in a zip, with further or renamed members."""

    def spoil(folder: Path) -> None:
        with zipfile.ZipFile(folder / "iclevr.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for path in sorted((folder / "iclevr").iterdir()):
                archive.write(path, renamed(f"iclevr/{path.name}"))
                path.unlink()
            for name, content in members.items():
                archive.writestr(name, content)
        (folder / "iclevr").rmdir()

    return spoil


def cut_zip(folder: Path) -> None:
    zipped({})(folder)
    path = folder / "iclevr.zip"
    path.write_bytes(path.read_bytes()[:-200])


def flipped_zip(folder: Path) -> None:
    """Flips a byte in the middle of a member's compressed data."""
    zipped({})(folder)
    content = bytearray((folder / "iclevr.zip").read_bytes())
    content[content.index(b"PK", 100) - 30] ^= 255
    (folder / "iclevr.zip").write_bytes(content)


def extra_picture(folder: Path) -> None:
    Image.new("RGB", (64, 64)).save(folder / "iclevr" / "stray.png")


def no_pictures(folder: Path) -> None:
    for path in (folder / "iclevr").iterdir():
        path.unlink()


def validation(content):
    return text("validation.json", json.dumps(content))


NOISE16 = np.zeros((64, 64), dtype=np.uint16)
DATA = [
    ("no objects.json", gone("objects.json"), ["objects.json is missing"]),
    ("no train.json", gone("train.json"), ["train.json"]),
    ("no test.json", gone("test.json"), ["test.json is missing"]),
    ("no new_test.json", gone("new_test.json"), ["new_test.json is missing"]),
    ("objects.json loops", loop("objects.json"), ["objects.json"]),
    ("train.json loops", loop("train.json"), ["train.json"]),
    ("test.json loops", loop("test.json"), ["test.json"]),
    ("new_test.json loops", loop("new_test.json"), ["new_test.json"]),
    ("a picture loops", loop(f"iclevr/{FIRST}"), [FIRST]),
    ("train.json not UTF-8", text("train.json", b'{"\xff": []}'), ["train.json", "not valid JSON"]),
    ("test.json not UTF-8", text("test.json", b'[["\xff"]]'), ["test.json", "not valid JSON"]),
    ("objects.json empty file", text("objects.json", ""), ["objects.json", "not valid JSON"]),
    ("objects.json empty", text("objects.json", "{}"), ["objects.json", "gray cube"]),
    ("objects.json a list", text("objects.json", "[1]"), ["objects.json", "expected"]),
    ("objects.json not UTF-8", text("objects.json", b"\xff\xfe{}"), ["objects.json", "not valid JSON"]),
    ("objects.json a gap", changed("objects.json", lambda c: c | {"gray cube": 99}), ["0 to 23"]),
    (
        "objects.json a text index",
        changed("objects.json", lambda c: c | {"gray cube": "0"}),
        ["'gray cube' is \"0\"", "whole number"],
    ),
    ("objects.json a fraction", changed("objects.json", lambda c: c | {"gray cube": 0.0}), ["'gray cube' is 0.0"]),
    (
        "objects.json a truth",
        changed("objects.json", lambda c: c | {"gray cube": False}),
        ["'gray cube' is false", "whole number"],
    ),
    ("objects.json a comma", text("objects.json", '{"a, b": 0}'), ["cannot be asked for"]),
    ("objects.json by case", text("objects.json", '{"Dog": 0, "dog": 1}'), ["cannot be asked for"]),
    ("objects.json twice", text("objects.json", '{"a": 0, "a": 1}'), ["'a' appears twice"]),
    ("train.json cut", text("train.json", '{"CLEVR'), ["train.json", "not valid JSON"]),
    ("train.json a list", text("train.json", "[]"), ["train.json", "expected"]),
    ("train.json empty", text("train.json", "{}"), ["train.json", "expected"]),
    ("train.json deep", text("train.json", "[" * 100_000), ["train.json", "not valid JSON"]),
    ("train.json text labels", changed("train.json", lambda c: c | {FIRST: "red cube"}), ["train.json", "expected"]),
    ("train.json number label", changed("train.json", lambda c: c | {FIRST: [3]}), ["train.json", "expected"]),
    ("train.json no label", changed("train.json", lambda c: c | {FIRST: []}), [FIRST, "empty label set"]),
    ("train.json unknown", changed("train.json", lambda c: c | {FIRST: ["pink cube"]}), [FIRST, "pink cube"]),
    ("train.json twice", changed("train.json", lambda c: c | {FIRST: ["red cube"] * 2}), [FIRST, "appears twice"]),
    ("train.json absent picture", changed("train.json", lambda c: c | {"x.png": ["red cube"]}), ["x.png is missing"]),
    ("train.json outside", changed("train.json", lambda c: c | {"../x.png": ["red cube"]}), ["../x.png is missing"]),
    ("test.json an object", text("test.json", "{}"), ["test.json", "list of label lists"]),
    ("test.json empty", text("test.json", "[]"), ["test.json", "list of label lists"]),
    ("test.json flat", text("test.json", '["red cube"]'), ["test.json", "list of label lists"]),
    ("test.json empty set", text("test.json", "[[]]"), ["test.json, set 0", "empty label set"]),
    ("test.json unknown", text("test.json", '[["red cub"]]'), ["set 0", "did you mean 'red cube'"]),
    ("new_test.json twice", text("new_test.json", '[["red cube", "red cube"]]'), ["set 0", "appears twice"]),
    ("validation.json shared", validation({FIRST: ["red cube"]}), [FIRST, "also in train.json"]),
    ("validation.json unknown", validation({"v.png": ["pink cube"]}), ["validation.json", "pink cube"]),
    ("validation.json cut", text("validation.json", "{"), ["validation.json", "not valid JSON"]),
    ("validation.json loops", loop("validation.json"), ["validation.json"]),
    ("no pictures", no_pictures, ["no pictures"]),
    ("a picture without labels", extra_picture, ["stray.png has no labels"]),
    ("a picture that is gone", gone(f"iclevr/{FIRST}"), [FIRST, "is missing but has labels"]),
    ("an empty picture", text(f"iclevr/{FIRST}", ""), [FIRST, "not a readable picture"]),
    ("a text picture", text(f"iclevr/{FIRST}", "hello"), [FIRST, "not a readable picture"]),
    ("a cut picture", text(f"iclevr/{FIRST}", b"\x89PNG\r\n\x1a\n" + bytes(40)), [FIRST, "not a readable picture"]),
    ("a PostScript picture", text(f"iclevr/{FIRST}", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), [FIRST]),
    ("a picture with damaged EXIF", picture(lambda: (Image.new("RGB", (64, 64)), {"exif": b"Exif\0\0MM\0*"})), [FIRST]),
    ("an animated picture", picture(animated), [FIRST, "animated"]),
    ("16 bits grey", picture(lambda: (Image.fromarray(NOISE16), {})), [FIRST, "16 or 32 bits"]),
    ("a transparent picture", picture(lambda: (Image.new("RGBA", (64, 64), (9, 9, 9, 9)), {})), [FIRST, "transparent"]),
    ("a monstrous picture", picture(lambda: (Image.new("1", (9000, 10)), {})), [FIRST, "9000x10"]),
    ("zip: not one", lambda f: (zipped({})(f), (f / "iclevr.zip").write_text("no")), ["not a readable zip"]),
    ("zip: cut", cut_zip, ["iclevr.zip"]),
    ("zip: a flipped byte", flipped_zip, ["iclevr.zip"]),
    ("zip: outside", zipped({"../evil.png": b""}), ["'../evil.png' points outside"]),
    ("zip: absolute", zipped({"/evil.png": b""}), ["'/evil.png' points outside"]),
    ("zip: twice", zipped({f"more/iclevr/{FIRST}": b""}), [f"two members are called {FIRST}"]),
    ("zip: a bomb", zipped({"iclevr/bomb.png": bytes(3 * 8192**2 + 1)}), ["bomb.png", "unpacks to"]),
    ("zip: no picture", zipped({}, lambda name: name + ".txt"), ["no pictures"]),
]
CONFIGURATION = [
    (["seed=-1"], "seed"),
    (["seed=x"], "seed"),
    (["name=../up"], "plain folder name"),
    (["name="], "plain folder name"),
    (["precision=float64"], "precision"),
    (["data.validation_every=0"], "data.validation_every"),
    (["data.withhold=2"], "data.withhold"),
    (["evaluator.steps=0"], "evaluator.steps"),
    (["evaluator.steps=1.5"], "evaluator.steps"),
    (["evaluator.batch=-4"], "evaluator.batch"),
    (["evaluator.learning_rate=.nan"], "evaluator.learning_rate"),
    (["evaluator.learning_rate=.inf"], "evaluator.learning_rate"),
    (["evaluator.betas=[0.9]"], "evaluator.betas"),
    (["evaluator.betas=[0.9,1.0]"], "evaluator.betas"),
    (["evaluator.warmup=6"], "evaluator.warmup"),
    (["evaluator.decay=sometimes"], "evaluator.decay"),
    (["evaluator.ema=2"], "evaluator.ema"),
    (["evaluator.clip=0"], "evaluator.clip"),
    (["evaluator=3"], "evaluator"),
    (["vae.channels=[8,16]"], "vae.channels"),
    (["vae.channels=[]"], "vae.channels"),
    (["vae.codebook.codes=0"], "vae.codebook.codes"),
    (["vae.codebook.start=6"], "vae.codebook.start"),
    (["vae.discriminator.start=99"], "vae.discriminator.start"),
    (["vae.norm=batch"], "vae.norm"),
    (["ldm.network.channels=15"], "ldm.network.channels"),
    (["ldm.network.head_width=null"], "ldm.network.heads"),
    (["ldm.network.heads=5", "ldm.network.head_width=null"], "the heads must divide"),
    (["ldm.network.multipliers=[1,1,1,1,1]"], "multipliers"),
    (["ldm.prediction=w"], "ldm.prediction", "mean", "x0"),
    (["ldm.log_snr=[0,0]"], "ldm.log_snr"),
    (["ldm.log_snr=[0,1]", "ldm.bound=true"], "ldm.bound and ldm.log_snr"),
    (["ldm.zero_terminal_snr=true", "ldm.prediction=noise"], "ldm.zero_terminal_snr"),
    (["ldm.zero_terminal_snr=true"], "ldm.min_snr=null"),
    (["ldm.network.self_condition=true", "ldm.prediction=noise"], "ldm.network.self_condition"),
    (["ddpm.network=patches", "ddpm.unet.self_condition=true", "ddpm.prediction=mean"], "ddpm.unet.self_condition"),
    (["ldm.timesteps=1"], "ldm.timesteps"),
    (["data.size=32", "gan.space=latents", "gan.stem=1", "gan.attention=true"], "gan.attention"),
    (["ldm.label_dropout=0"], "ldm.label_dropout"),
    (["gan.loss=bce"], "gan.loss", "wgan-gp", "lsgan"),
    (["gan.critic_steps=0"], "gan.critic_steps"),
    (["eval.seeds=[]"], "eval.seeds"),
    (["eval.interval=[0.9,0.1]"], "eval.interval"),
    (["eval.steps=101"], "eval.steps"),
    (["eval.classifier_guidance=1"], "uses.guide"),
    (["uses.vae=../x"], "uses.vae"),
    (["models=[]"], "models"),
    (["models=[vqgan]"], "models", "ddpm"),
    (["ldm.schedule=exp"], "ldm.schedule", "beta-cosine", "sigmoid"),
    (["uses={judge: smoke}"], "uses.judge"),
    (["evaluator.steps=[1"], "evaluator.steps"),
    (["=3"], "section.key=value"),
    (["seed.x=1"], "seed"),
    ([f"seed={2**64}"], "seed"),
    (["render.scenes=0"], "render.scenes"),
    (["render.size=0"], "render.size"),
    (["render.samples=-1"], "render.samples"),
    (["render.camera_distance=2.0"], "render.camera_distance"),
    (["render.seed=-1"], "render.seed"),
    (["evaluator.keep=1"], "evaluator.keep"),
    (["evaluator.low_resolution=1.5"], "evaluator.low_resolution"),
    (["vae.perceptual.network=resnet"], "vae.perceptual.network"),
    (["vae.discriminator.layers=5"], "vae.discriminator.layers"),
    (["vae.stem=3"], "vae.stem"),
    (["ldm.network.condition=text"], "ldm.network.condition"),
    (["ldm.network.self_condition=2"], "ldm.network.self_condition"),
    (["gan.critic.condition=all"], "gan.critic.condition", "projection+auxiliary"),
    (["gan.gamma=[-0.1, 0.2]"], "gan.gamma"),
    (["gan.critic.read=places", "gan.critic.condition=concatenation"], "set one of projection, auxiliary, "),
    (["gan.critic.read=places"], "set gan.critic.pool=sum, not flatten"),
    (["gan.generator.entry=map"], "set gan.generator.condition=modulation, not concatenation"),
    (["gan.critic.read=places", "gan.critic.pool=sum", "gan.attention=true"], "or gan.attention=false"),
    (["gan.stem=1"], "gan.generator.channels [16, 16, 8, 8] are too few: give at least 5"),
    (["gan.critic.channels=[8,8,8]"], "gan.critic.channels [8, 8, 8] are too few: give at least 4"),
    (["gan.penalty_share=0"], "gan.penalty_share"),
    (["gan.body=vgg"], "gan.body", "residual", "dcgan"),
    (["ddpm.width=12"], "ddpm.width"),
    (["ddpm.paths=down"], "ddpm.paths", "up+down"),
    (["ddpm.plateau_factor=0"], "ddpm.plateau_factor"),
    (["ddpm.stepz=3"], "did you mean steps"),
    (["eval.sampler=euler"], "eval.sampler", "ancestral"),
    (["eval.spacing=log"], "eval.spacing", "quadratic"),
    (["eval.eta=2"], "eval.eta"),
    (["eval.clip=0"], "eval.clip"),
    (["models=[ddpm]", "ddpm.network=patches", "eval.sampler=ancestral", "eval.clip=1.0"], "set eval.clip=null"),
    (["eval.batch=0"], "eval.batch"),
    (["eval.guidance=-1"], "eval.guidance"),
    (["device=quantum"], "device", "cpu"),
    (["deterministic=maybe"], "deterministic"),
    (["reported={ldm: [1]}"], "reported.ldm"),
    (["root=a\0b"], "root"),
]


def snapshot(folder: Path) -> dict[str, str]:
    """Returns every file's hash, and every link's target."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = str(path.readlink())
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@pytest.mark.parametrize(("spoil", "parts"), [case[1:] for case in DATA], ids=[case[0] for case in DATA])
def test_bad_data(stage, tmp_path, spoil, parts):
    folder, root = write_folder(tmp_path / "data"), tmp_path / "root"
    spoil(folder)
    before = snapshot(folder)
    arguments = (f"root={root}", f"data.folder={folder}", "data.validation_every=3")
    assert_one_line(*stage("evaluator", *arguments), *parts)
    assert snapshot(folder) == before
    assert not list(root.rglob("*.safetensors"))


@pytest.mark.parametrize("case", CONFIGURATION, ids=[" ".join(case[0]) for case in CONFIGURATION])
def test_bad_configuration(stage, tmp_path, case):
    """The line names the key, and where a word may be one of several, those."""
    overrides, *parts = case
    status, said = stage("evaluator", f"root={tmp_path}", *overrides)
    said = said.replace(str(tmp_path), "")  # the test's own name is in it
    assert_one_line(status, said, *parts)
    assert "no scenes yet" not in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "empty.yaml"),
        (b"seed: [", "empty.yaml"),
        (b"\xff\xfe\x00", "empty.yaml"),
        (b"- 1", "empty.yaml"),
        (b"seed: 1\nseed: 2\n", "empty.yaml"),
        (b"extends: none.yaml\n", "none.yaml"),
        (b"extends: empty.yaml\n", "no circle"),
        (b"evaluator: !!python/object/apply:os.system ['touch ran']\n", "empty.yaml"),
    ],
)
def test_bad_configuration_files(stage, tmp_path, content, part):
    path = tmp_path / "empty.yaml"
    path.write_bytes(content)
    assert_one_line(*stage("evaluator", f"root={tmp_path}", config=path), part)
    assert [p.name for p in tmp_path.iterdir()] == ["empty.yaml"]
