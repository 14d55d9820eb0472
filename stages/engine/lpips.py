"""Loads LPIPS with its backbone's weights from a file, from torch's hub cache, or by download."""

import hashlib
from pathlib import Path
from urllib.error import URLError

import torch

from models.perceptual import Perceptual, load_trunk, trunk_url
from stages.engine.command import Context
from stages.engine.errors import UserError, is_out_of_memory, oneline
from stages.engine.log import say


def load_perceptual(settings, context: Context) -> Perceptual:
    """Returns LPIPS with its ImageNet trunk from a file, torch's hub cache, or a download into it. Raises UserError.

    On a GPU the trunk works in the stage's type: float32 leaves the matrix units idle.
    """
    dtype = context.dtype if context.device.type == "cuda" else torch.float32
    url = trunk_url(settings.network)
    path = Path(settings.weights) if settings.weights else Path(torch.hub.get_dir(), "checkpoints", Path(url).name)
    without = "or set vae.perceptual.weight=0"
    if not path.is_file() and not settings.weights:
        try:
            torch.hub.load_state_dict_from_url(
                url, map_location="cpu", progress=True, check_hash=True, weights_only=True
            )
        except (URLError, OSError, RuntimeError):
            raise UserError(
                f"LPIPS needs {path}, which cannot be downloaded here: put {path.name} there, {without}"
            ) from None
    try:
        _warn_of_other(path, Path(url).name)
        trunk = load_trunk(torch.load(path, map_location="cpu", weights_only=True))
        return Perceptual(settings.network, trunk, dtype)
    except FileNotFoundError:
        raise UserError(f"LPIPS needs {path}, which is missing: put {Path(url).name} there, {without}") from None
    except Exception as error:
        if is_out_of_memory(error):
            raise
        # a pickle, a truncated file, another network: all end the same
        raise UserError(
            f"{path} does not hold torchvision's {Path(url).name} ({oneline(error)[:60]}): replace it, {without}"
        ) from None


def _warn_of_other(path: Path, name: str) -> None:
    """Warns if a file is not torchvision's `name`, which ends with the first digits of its SHA-256."""
    digits = Path(name).stem.rpartition("-")[2]
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(digits):
        say(f"warning: {path} is another file than torchvision's {name} ({found[:8]}); LPIPS was fitted to that one")
