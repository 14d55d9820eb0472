"""`make scenes`: draws i-CLEVR look-alikes into checkpoints/<experiment>/render/, in the lab's folder layout."""

import json
import time
from pathlib import Path

from data.labels import DataError
from data.render import draw_scenes
from data.scenes import OBJECTS, Look, objects_json, scene_poses, test_sets
from stages.commands import COMMANDS
from stages.engine.command import Context, run_command
from stages.engine.errors import UserError
from stages.engine.files import from_json, write_atomically
from stages.engine.log import progress, say
from stages.engine.run import differences, move_aside
from stages.engine.schema import flatten

POSES = ("places.json", "turns.json")


def _settings_of(folder: Path) -> dict | None:
    """Returns the settings with which a folder was begun, or None."""
    try:
        return {"objects": OBJECTS, "series": True} | from_json((folder / "render.json").read_text())
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        raise UserError(f"{folder / 'render.json'} is damaged; start again with --fresh (Make: FRESH=1)") from None


def _write_missing_poses(folder: Path, indices: range, look: Look) -> list[str]:
    """Writes the files of places and turns that a version drew without. Returns their names."""
    missing = [name for name in POSES if not (folder / name).exists()]
    if missing:
        poses = dict(zip(POSES, scene_poses(indices, look), strict=True))
        for name in missing:
            write_atomically(folder / name, json.dumps(poses[name]).encode())
    return missing


def main(context: Context) -> None:
    settings, folder = context.config.render, context.folder("render")
    title = f"{context.config.name}/render"
    if context.config.data.folder:
        say(f"{title}: nothing to draw, the pictures are in {context.config.data.folder}")
        return
    context.hold("render")
    if context.arguments.fresh and folder.exists():
        say(f"{title}: the old scenes are now {move_aside(folder)}")
    size = settings.size or context.config.data.size
    wanted, begun = flatten(settings) | {"size": size}, _settings_of(folder)
    if begun is not None and (changes := differences(begun, wanted)):
        raise UserError(f"{folder} has other scenes ({'; '.join(changes)}); start again with --fresh (Make: FRESH=1)")
    look = Look(settings.seed, settings.camera_distance, settings.objects, settings.series)
    total = settings.scenes + settings.validation_scenes
    pictures = total * (settings.objects if settings.series else 1)
    if (folder / "train.json").exists():
        if begun is not None and (added := _write_missing_poses(folder, range(total), look)):
            say(f"{title}: wrote where objects are and how they are turned to {folder}: {', '.join(added)}")
        say(f"{title}: finished already ({pictures} pictures): {folder}")
        return
    write_atomically(folder / "render.json", json.dumps(wanted).encode())
    write_atomically(folder / "objects.json", objects_json().encode())
    for name, sets in test_sets(settings.seed, settings.objects).items():
        write_atomically(folder / f"{name}.json", json.dumps(sets).encode())
    if size > context.config.data.size:
        say(f"{title}: drawn at {size}x{size}; packing shrinks them to data.size={context.config.data.size}")
    began = time.perf_counter()
    try:
        labels, *poses = draw_scenes(
            folder / "iclevr",
            range(total),
            lambda scenes: progress(scenes, f"{title}: {total} scenes", total),
            look=look,
            size=size,
            samples=settings.samples,
        )
    except DataError as error:
        raise UserError(str(error)) from None
    pairs = list(labels.items())
    cut = settings.scenes * pictures // total
    for name, of_scenes in zip(POSES, poses, strict=True):
        write_atomically(folder / name, json.dumps(of_scenes).encode())
    write_atomically(folder / "validation.json", json.dumps(dict(pairs[cut:])).encode())
    write_atomically(folder / "train.json", json.dumps(dict(pairs[:cut])).encode())  # last: the set is complete
    say(f"{title}: {len(pairs)} pictures in {(time.perf_counter() - began) / 60:.1f} min: {folder}")


if __name__ == "__main__":
    run_command(COMMANDS["render"], main)
