"""Checks what a caller of the library asks for, so that a mistake is one line that names the argument."""

import math
import operator
from collections.abc import Sequence
from numbers import Real

from data.labels import Place, Vocabulary, as_text
from stages.engine.errors import UserError


def whole(name: str, value: object, least: int | None = 1) -> int:
    """Returns a whole number of Python, numpy or torch as int. Raises UserError for another value, or one too small."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except (TypeError, RuntimeError):  # torch's, for a tensor of several numbers or of fractions
        number = None
    if number is None or isinstance(value, bool) or (least is not None and number < least):
        raise UserError(f"{name} {value!r}: give a whole number" + ("" if least is None else f" of at least {least}"))
    return number


def guidance_scale(value: object) -> float:
    """Returns a number of Python or numpy as float. Raises UserError for another value, infinity, or one below 0."""
    try:
        scale = float(value) if isinstance(value, Real) else math.nan
    except OverflowError:  # a whole number beyond the largest float
        scale = math.inf
    if not 0 <= scale < math.inf:
        raise UserError(f"guidance {value!r}: must be a finite number of at least 0; 1 means no guidance")
    return scale


def require_functions(**functions: object) -> None:
    """Raises UserError for a value that is neither None nor can be called."""
    for name, value in functions.items():
        if value is not None and not callable(value):
            raise UserError(f"{name} {value!r}: give a function")


def _pair(x: float, y: float) -> Place:  # given an unpacked place, which may have other than two numbers
    return float(x), float(y)


def with_places(labels: str, places: Sequence[Place | None] | None, vocabulary: Vocabulary) -> str:
    """Writes `places` into the text, where a place is checked. Raises UserError if they do not fit together,
    DataError for an unknown object."""
    if not isinstance(labels, str):
        raise UserError(f'labels {labels!r}: give one text, such as "red cube, cyan sphere"')
    if places is None:
        return labels
    objects, given = vocabulary.parse(labels)
    if any(given):
        raise UserError(f"labels {labels!r}: places are in the text and in `places`; give them once")
    try:
        pairs = [place if place is None else _pair(*place) for place in places]
    except (TypeError, ValueError, RuntimeError, OverflowError):  # RuntimeError: torch's
        raise UserError(f"places {places!r}: give (x, y) or None for each object, such as [(0.3, 0.6), None]") from None
    if len(pairs) != len(objects):
        raise UserError(f"places {places!r}: give one for each of the {len(objects)} objects, or None")
    return as_text((vocabulary.names[i] for i in objects), pairs)
