"""Small data folders in the lab's layout, for tests."""

import json
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from data.labels import CLEVR


def write_folder(folder: Path, scenes: int = 6, size: tuple[int, int] = (64, 64), places: bool = True) -> Path:
    """Writes `scenes` scenes of three pictures of noise, with labels, objects, test sets and, by default, places."""
    (folder / "iclevr").mkdir(parents=True)
    rng = np.random.default_rng(0)
    labels = {}
    for scene in range(scenes):
        names = [CLEVR.names[i] for i in rng.choice(24, 3, replace=False)]
        for k in range(3):
            name = f"CLEVR_train_{scene:06d}_{k}.png"
            pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "iclevr" / name)
            labels[name] = names[: k + 1]
    (folder / "train.json").write_text(json.dumps(labels))
    if places:
        corners = [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75]]
        content = {name: corners[: len(row)] for name, row in labels.items()}
        (folder / "places.json").write_text(json.dumps(content))
    (folder / "objects.json").write_text(json.dumps(CLEVR.index))
    for name in ("test", "new_test"):
        (folder / f"{name}.json").write_text(json.dumps([["red cube"], ["cyan sphere", "gray cube"]]))
    return folder


def zip_pictures(folder: Path, above: str = "iclevr/") -> None:
    """Writes the pictures of a `write_folder` into a zip beside them, `above` before each name."""
    with zipfile.ZipFile(folder / "iclevr.zip", "w") as archive:
        for path in sorted((folder / "iclevr").iterdir()):
            if path.is_file():
                archive.write(path, above + path.name)
