"""What evaluator and reader say of a picture: which of the objects asked for it shows, what instead, and where."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from data.labels import Place, Vocabulary
from models.reader import Found
from stages.engine.command import Context
from stages.engine.errors import UserError, oneline
from stages.judge import load_evaluator, load_reader, read, scores

ROUNDING = 0.01  # by which floats may leave [-1, 1]


@dataclass(frozen=True)
class Verdict:
    """What evaluator and reader say of one object that a picture was asked for.

    `found`: it is among the k objects with the highest scores, of k asked for (accuracy counts these). `score`: the
    evaluator's probability that the picture shows it, in [0, 1]. `instead`: for an object not found, the one that
    took its rank, with `instead_score`; else None. `place`: where the reader sees it, (x, y) in [0, 1], if it does and
    the experiment has a reader. `pixels`: how far that is from the place asked for, if one was.
    """

    object: str
    found: bool
    score: float
    instead: str | None = None
    instead_score: float | None = None
    place: Place | None = None
    pixels: float | None = None


class Judge:
    """The experiment's evaluator and, if it has one, its reader. Raises UserError if there is no evaluator."""

    def __init__(self, context: Context, vocabulary: Vocabulary):
        self.context, self.vocabulary = context, vocabulary
        self.evaluator, _ = load_evaluator(context, len(vocabulary))
        self.reader = load_reader(context)[0] if context.export("reader").is_file() else None

    def verdicts(
        self, pictures: Tensor | Image.Image | Sequence[Image.Image], labels: str | Sequence[str]
    ) -> list[list[Verdict]]:
        """Returns each picture's verdicts, one for each object asked for. Arguments as `Experiment.judge`."""
        images = self._tensor(pictures)
        texts: list = list(labels) if isinstance(labels, list | tuple) else [labels] * len(images)
        if len(texts) != len(images):
            raise UserError(f"{len(texts)} labels for {len(images)} pictures: give one text, or one for each picture")
        if not len(images):
            return []
        parsed = [self._parsed(text) for text in texts]
        logits = scores(self.evaluator, images, self.context).cpu()
        seen = [[]] * len(images) if self.reader is None else read(self.reader, images, self.context)[0]
        return [self._of_picture(*asked, row, found) for asked, row, found in zip(parsed, logits, seen, strict=True)]

    def _parsed(self, text: str) -> tuple[list[int], list[Place | None]]:
        if not isinstance(text, str):
            raise UserError(f'labels {text!r}: give a text, such as "red cube, cyan sphere"')
        return self.vocabulary.parse(text)

    def _of_picture(
        self, objects: list[int], places: list[Place | None], logits: Tensor, seen: list[Found]
    ) -> list[Verdict]:
        best = logits.argsort(descending=True)[: len(objects)].tolist()  # as top_k_hits ranks them
        probabilities = logits.sigmoid().tolist()
        others, found = [i for i in best if i not in objects], []
        for index, place in zip(objects, places, strict=True):
            instead = None if index in best else others.pop(0)
            where, pixels = self._seen(seen, index, place)
            found.append(
                Verdict(
                    self.vocabulary.names[index],
                    index in best,
                    probabilities[index],
                    None if instead is None else self.vocabulary.names[instead],
                    None if instead is None else probabilities[instead],
                    where,
                    pixels,
                )
            )
        return found

    def _seen(self, seen: list[Found], index: int, place: Place | None) -> tuple[Place | None, float | None]:
        """Returns where the reader sees an object, the nearest to its place or else the surest, and the distance."""
        of_it = [one for one in seen if one.index == index]
        if not of_it:
            return None, None
        if place is None:
            best = max(of_it, key=lambda one: one.confidence)
            return (best.x, best.y), None

        def distance(one: Found) -> float:
            return ((one.x - place[0]) ** 2 + (one.y - place[1]) ** 2) ** 0.5

        best = min(of_it, key=distance)
        return (best.x, best.y), distance(best) * self.context.config.data.size

    def _tensor(self, pictures: Tensor | Image.Image | Sequence[Image.Image]) -> Tensor:
        """Returns pictures as (n, 3, s, s), uint8 or in [-1, 1]."""
        side = self.context.config.data.size
        if isinstance(pictures, Tensor):
            if pictures.ndim != 4 or pictures.shape[1:] != (3, side, side):
                raise UserError(f"pictures {tuple(pictures.shape)}: a tensor must be (n, 3, {side}, {side})")
            of_bytes = pictures.dtype == torch.uint8
            if not (of_bytes or pictures.is_floating_point()):
                raise UserError(f"pictures of {pictures.dtype}: a tensor must be uint8, or of floats in [-1, 1]")
            if not of_bytes and not (pictures.abs() <= 1 + ROUNDING).all():  # false for nan too
                raise UserError("pictures: floats must be in [-1, 1]; give uint8 for 0 to 255")
            return pictures
        every: list = list(pictures) if isinstance(pictures, list | tuple) else [pictures]
        if not all(isinstance(one, Image.Image) for one in every):
            raise UserError("pictures: give Pillow images, or a tensor (n, 3, s, s)")
        sized = [_scaled(one, side, number) for number, one in enumerate(every)]
        arrays = [rearrange(torch.from_numpy(np.array(one)), "h w c -> c h w") for one in sized]
        return torch.stack(arrays) if arrays else torch.zeros(0, 3, side, side)


def _scaled(picture: Image.Image, side: int, number: int) -> Image.Image:
    """Scales a picture as a data folder's are (data/images.py). Raises UserError, which names it by its number."""
    try:  # an opened file is decoded only here
        return picture.convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise many kinds of exception on damaged files
        raise UserError(f"picture {number}: it cannot be read ({oneline(error)[:100]}); give another file") from None
