"""Grids of pictures for previews and reports."""

import io

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor


def grid(images: Tensor, columns: int = 8, gap: int = 2) -> Tensor:
    """(n, 3, h, w) in [-1, 1] -> one picture (3, H, W) in [0, 1], on white, `columns` a row."""
    images = images.detach().float().cpu().add(1).div(2).clamp(0, 1)
    missing = -len(images) % columns
    images = torch.cat([images, images.new_ones(missing, *images.shape[1:])])
    images = torch.nn.functional.pad(images, (0, gap, 0, gap), value=1.0)
    return rearrange(images, "(r k) c h w -> c (r h) (k w)", k=columns)


def png(picture: Tensor, scale: int = 1) -> bytes:
    """(3, h, w) in [0, 1] -> a PNG file, enlarged by whole pixels."""
    pixels = picture.detach().cpu().clamp(0, 1).mul(255).round().to(torch.uint8)
    image = Image.fromarray(rearrange(pixels, "c h w -> h w c").numpy())
    buffer = io.BytesIO()
    image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST).save(buffer, "PNG")
    return buffer.getvalue()
