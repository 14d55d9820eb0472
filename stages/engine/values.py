"""Types of the configuration's values: their ranges, and what a YAML list or a path becomes."""

import os
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, PlainValidator
from pydantic_core import PydanticCustomError

from models.choices import ModelName


def _tuple(value):
    return tuple(value) if isinstance(value, list) else value


def _listed(value):
    return list(value) if isinstance(value, tuple) else value


def _folder(value):
    """Takes a path, a list of paths or null, with ~ for the home folder."""
    several = list(value) if isinstance(value, list | tuple) else [value]
    if value is None or value == "":
        return None
    if not several or not all(isinstance(path, str) for path in several):
        raise PydanticCustomError("folder", "should be a folder, or a list of folders such as [first, second]")
    paths = tuple(map(os.path.expanduser, several))
    if len(set(paths)) < len(paths):
        raise PydanticCustomError("folder", "should name each folder once")
    return paths[0] if isinstance(value, str) else paths


Ints = Annotated[tuple[int, ...], BeforeValidator(_tuple)]
# from an export a width must not be endless: heads of attention are found by trying
Width = Annotated[int, Field(gt=0, le=2**16)]
Widths = Annotated[tuple[Width, ...], Field(min_length=1), BeforeValidator(_tuple)]
Betas = Annotated[
    tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]], BeforeValidator(_tuple)
]
Models = Annotated[tuple[ModelName, ...], Field(min_length=1), BeforeValidator(_tuple)]
Names = Annotated[tuple[str, ...], Field(min_length=1), BeforeValidator(_tuple)]
Pair = Annotated[tuple[float, float], BeforeValidator(_tuple)]
Bell = Annotated[tuple[float, Annotated[float, Field(gt=0)]], BeforeValidator(_tuple)]  # mean and deviation
PictureDraws = Literal["uniform", "by-labels"]  # each picture once per epoch, or once per label
Compiled = Literal[False, True, "cuda-graphs"]  # cuda-graphs: compiled, and launched as one graph; true on a CPU
Positive = Annotated[int, Field(gt=0)]
Natural = Annotated[int, Field(ge=0)]
Layers = Annotated[int, Field(gt=0, le=100)]  # of a network; from an export it must not be endless
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Share = Annotated[float, Field(ge=0, le=1)]
Part = Annotated[float, Field(ge=0, lt=1)]  # a share that leaves something
PlaceOnDisk = Annotated[str, Field(min_length=1), AfterValidator(os.path.expanduser)]  # ~ is the home folder
File = Annotated[str | None, AfterValidator(lambda path: path and os.path.expanduser(path))]
Folder = Annotated[str | tuple[str, ...] | None, PlainValidator(_folder), PlainSerializer(_listed)]
NonNegative = Annotated[float, Field(ge=0)]
Gammas = Annotated[tuple[NonNegative, NonNegative], BeforeValidator(_tuple)]
