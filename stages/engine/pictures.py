"""Makes grids of pictures for previews and reports."""

import io

import torch
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

SHOWN = 128  # pixels a side of a picture on a page, if it is not larger itself


def grid(images: Tensor, columns: int = 8, gap: int = 2) -> Tensor:
    """Arranges (n, 3, h, w) in [-1, 1] as one picture (3, H, W) in [0, 1], on white, with `columns` per row."""
    images = images.detach().float().cpu().add(1).div(2).clamp(0, 1)
    missing = -len(images) % columns
    images = torch.cat([images, images.new_ones(missing, *images.shape[1:])])
    images = torch.nn.functional.pad(images, (0, gap, 0, gap), value=1.0)
    return rearrange(images, "(r k) c h w -> c (r h) (k w)", k=columns)


def cell_of(sheet: bytes, place: int, size: int, columns: int = 8, gap: int = 2) -> bytes:
    """Cuts picture number `place` out of a PNG of `grid`, enlarged as a page has it, as a PNG file.

    `size`: a picture's side before it was enlarged.
    """
    image, scale = Image.open(io.BytesIO(sheet)), page_scale(size)
    left, top = (n * (size + gap) * scale for n in (place % columns, place // columns))
    buffer = io.BytesIO()
    image.crop((left, top, left + size * scale, top + size * scale)).save(buffer, "PNG")
    return buffer.getvalue()


def png(picture: Tensor, scale: int = 1) -> bytes:
    """Encodes (3, h, w) in [0, 1] as a PNG file, each pixel enlarged to `scale` x `scale`."""
    buffer = io.BytesIO()
    image_of(picture, scale).save(buffer, "PNG")
    return buffer.getvalue()


def image_of(picture: Tensor, scale: int = 1) -> Image.Image:
    """Converts (3, h, w) in [0, 1] to a Pillow image, each pixel enlarged to `scale` x `scale`."""
    pixels = picture.detach().cpu().clamp(0, 1).mul(255).round().to(torch.uint8)
    image = Image.fromarray(rearrange(pixels, "c h w -> h w c").numpy())
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def page_scale(size: int) -> int:
    """Returns by how much a page enlarges pictures of `size` so that they can be seen."""
    return max(1, SHOWN // size)


def captioned(pictures: list[dict], columns: int = 8, side: int = SHOWN) -> bytes:
    """Draws pictures with the objects asked for below them, those that the judge missed in red, as a PNG file.

    `pictures`: as a report has them, {"png": bytes, "labels": [{"name": str, "hit": bool}, ...]}. `side`: pixels of a
    picture in the result.
    """
    font, line, gap = ImageFont.load_default(12), 15, 8
    lines = max(len(picture["labels"]) for picture in pictures)
    rows, height = -(-len(pictures) // columns), side + line * lines + gap
    sheet = Image.new("RGB", (columns * (side + gap) + gap, rows * height + gap), "white")
    pen = ImageDraw.Draw(sheet)
    for i, picture in enumerate(pictures):
        x, y = gap + i % columns * (side + gap), gap + i // columns * height
        sheet.paste(Image.open(io.BytesIO(picture["png"])).resize((side, side), Image.Resampling.LANCZOS), (x, y))
        for j, label in enumerate(picture["labels"]):
            text, colour = (label["name"], "#333") if label["hit"] else (f"x {label['name']}", "#c00")
            pen.text((x + 2, y + side + 2 + line * j), text, colour, font)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()
