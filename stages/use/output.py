"""Writes what `make sample` draws: a sheet, an animation of the denoising, or a folder with a file for each picture.

Without torch until something is written, so that mistakes are answered at once.
"""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.choices import DIFFUSION
from stages.engine.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from stages.use.library import Frame

# of Pillow, by suffix: the format, its options and its longest side in pixels
FORMATS: dict[str, tuple[str, dict[str, Any], int]] = {
    ".png": ("PNG", {}, 2**31 - 1),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}, 65500),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}, 65500),
    ".webp": ("WEBP", {"lossless": True}, 16383),
    ".gif": ("GIF", {}, 65535),
}
MOVING = (".gif", ".webp")
COLUMNS, GAP = 8, 2  # of a sheet
LENGTH, LAST, MOST = 2000, 1500, 60  # of an animation: milliseconds, those of its last frame, frames


def is_folder(out: str) -> bool:
    """Returns True for a name that ends in / or is a folder: it gets one file for each picture."""
    return out.endswith(("/", os.sep)) or (out != "" and Path(out).is_dir())


def is_moving(out: str, animate: bool) -> bool:
    """Returns True if the output shows the denoising: a GIF always, a WebP with --animate."""
    return animate or (Path(out).suffix.lower() == ".gif" and not is_folder(out))


def check_output(out: str, animate: bool, model: str) -> None:
    """Raises UserError for an output that cannot be written, or that `model` has none of."""
    suffix = Path(out).suffix.lower()
    if is_folder(out):
        if animate:
            raise UserError(f"--animate: {out} is a folder, which gets still pictures; name a file, such as x.gif")
        _check_place(Path(out) / "00.png", out)
        return
    if suffix not in FORMATS:
        raise UserError(f"--out {out}: choose a name that ends in {', '.join(FORMATS)}, or a folder, which ends in /")
    if animate and suffix not in MOVING:
        raise UserError(f"--animate: {suffix} holds one picture; choose a name that ends in .gif or .webp")
    if is_moving(out, animate) and model not in DIFFUSION:
        raise UserError(
            f"--out {out}: it would show a denoising, and {model} draws in one step; choose a name that ends in .png, "
            f"or a diffusion model, such as --model {DIFFUSION[0]}"
        )
    _check_place(Path(out), out)


def _check_place(path: Path, out: str) -> None:
    """Raises UserError if the nearest folder that exists is a file, or may not be written to."""
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir():
        raise UserError(f"--out {out}: {above} is a file, not a folder; choose another place")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"--out {out}: {above} may not be written to; choose another place")


def check_sheet(out: str, count: int, size: int) -> None:
    """Raises UserError if `count` pictures of `size` pixels are too many for a sheet in the output's format."""
    if is_folder(out):
        return
    from stages.engine.pictures import page_scale

    rows = -(-count // COLUMNS)
    longest = max(rows, min(count, COLUMNS)) * (size + GAP) * page_scale(size)
    name, _, most = FORMATS[Path(out).suffix.lower()]
    if longest > most:
        raise UserError(
            f"--count {count}: a sheet of {longest} pixels is larger than {name} allows ({most}); name a folder, which "
            f"ends in /, or draw fewer"
        )


def sheet(pictures: Sequence["Image.Image"]) -> "Image.Image":
    """Arranges pictures of one size on white, eight in a row, enlarged so that they can be seen."""
    from PIL import Image

    from stages.engine.pictures import page_scale

    size, columns = pictures[0].width, min(COLUMNS, len(pictures))
    whole = Image.new("RGB", (columns * (size + GAP), -(-len(pictures) // columns) * (size + GAP)), "white")
    for i, picture in enumerate(pictures):
        whole.paste(picture, (i % columns * (size + GAP), i // columns * (size + GAP)))
    scale = page_scale(size)
    return whole.resize((whole.width * scale, whole.height * scale), Image.Resampling.NEAREST)


def still(out: str, pictures: Sequence["Image.Image"]) -> None:
    """Writes a sheet in the format of the output's suffix, or, into a folder, 00.png and so on in their own size."""
    if is_folder(out):
        digits = max(2, len(str(len(pictures) - 1)))
        for i, picture in enumerate(pictures):
            _write(Path(out) / f"{i:0{digits}}.png", [picture])
    else:
        _write(Path(out), [sheet(pictures)])


def moving(out: str, frames: Sequence["Frame"]) -> None:
    """Writes the denoising as an animation that repeats: at most 60 frames in 2 to 2.4 seconds, the last one longer."""
    _write(Path(out), sheets(frames))


def sheets(frames: Sequence["Frame"]) -> list["Image.Image"]:
    """Returns a sheet for each frame of an animation."""
    from models.layouts import evenly

    return [sheet(frames[i].x) for i in evenly(len(frames), MOST).tolist()]


def _write(path: Path, frames: Sequence["Image.Image"]) -> None:
    from stages.engine.files import write_atomically

    write_atomically(path, encoded(path.suffix.lower(), frames))


def encoded(suffix: str, frames: Sequence["Image.Image"]) -> bytes:
    """Encodes a picture, or several as an animation, in the format of a suffix of FORMATS."""
    name, options, _ = FORMATS[suffix]
    if len(frames) > 1:
        each = max(40, min(300, LENGTH // len(frames)))
        times = [each] * (len(frames) - 1) + [LAST]
        options = options | {"save_all": True, "append_images": frames[1:], "duration": times, "loop": 0}
    buffer = io.BytesIO()
    frames[0].save(buffer, name, **options)
    return buffer.getvalue()
