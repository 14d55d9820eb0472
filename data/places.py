"""Object places, read from places.json or recovered from the differences between the pictures of a scene; and turns.

The pictures of an i-CLEVR scene form a series: each has the objects of the one before and one more, under the same
camera and lamps. Their difference is that object and its shadow. The first object differs from the floor, which is the
median of all first pictures.
Pictures of any size are compared at 64x64: sizes below are in those pixels.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data.labels import DataError, Place, on_one_spot, read_json

Value = TypeVar("Value")

# A shadow darkens a grey floor equally in all channels, a coloured object does not: for a coloured object, a pixel's
# change is that of hue (the largest change of a channel minus the smallest), else the largest change of a channel.
HUE = (0.3, 12)  # an object's pixels change by more than this share of its strength and this many grey levels
CHANGE = (0.4, 20)
STRONGEST = 16  # an object's strength is the change of its 16th strongest pixel; the smallest have about 25 pixels
SMALLEST, LARGEST = 12, 1024  # pixels of an object
# Half of the pixels change by at most this many grey levels, and one object is at least this share of all change:
# within a scene, and from the floor, where lamps and camera differ a little between scenes.
WITHIN, FROM_FLOOR = (3, 0.75), (20, 0.5)
SERIES = 0.75  # of all pairs: if fewer differ by one object, the pictures are not a series
FEWEST = 8  # first pictures that their median needs to be the floor
CHUNK = 1024  # pictures at once
SIDE = 64  # of the pictures that are compared: a row of a mask is one word of 64 bits


def _place(value: object) -> Place | None:
    """Converts [x, y], each in [0, 1], to (x, y), and null to None. Raises ValueError."""
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError
    if not all(type(v) in (int, float) and 0 <= v <= 1 for v in value):  # NaN is in no interval
        raise ValueError
    return float(value[0]), float(value[1])


def _turn(value: object) -> float | None:
    """Converts a number in [0, 1) to a float, and null to None. Raises ValueError."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:  # NaN is in no interval
        raise ValueError
    return float(value)


def _of_objects(
    path: Path, listed: dict[str, list[int]], of: Callable[[object], Value | None], words: str, row: str, fix: str
) -> dict[str, list[Value | None]] | None:
    """Reads {file name: [value or null, ...]}, each by `of`: one for each object of a picture's list, None if unknown.

    Returns None if there is no file. `words` are for the values in errors, `row` is an example and `fix` says how to
    write them. Raises DataError.
    """
    if not os.path.lexists(path):
        return None
    content = read_json(path)
    if not isinstance(content, dict) or not all(isinstance(values, list) for values in content.values()):
        raise DataError(f'{path}: expected {{"picture.png": {row}, ...}}')
    found: dict[str, list[Value | None]] = {}
    for picture, values in content.items():
        if picture not in listed:
            raise DataError(f"{path}: {picture!r} has no labels; add them or remove it")
        if len(values) != len(listed[picture]):
            counts = f"{len(values)} {words} for {len(listed[picture])} objects"
            raise DataError(f"{path}, {picture}: {counts}; give one per object, in the order of the labels, or null")
        try:
            found[picture] = list(map(of, values))
        except ValueError:
            raise DataError(f"{path}, {picture}: {str(values)[:80]} are not {words}; {fix}") from None
    return found


def read_places(path: Path, listed: dict[str, list[int]]) -> dict[str, list[Place | None]] | None:
    """Reads `places.json`, {file name: [[x, y] or null, ...]}: a place or None for each object of a picture's list.

    `listed`: all pictures' objects. Pictures that are missing from the file have no known places. Returns None if there
    is no file. Raises DataError.
    """
    fix = "give each as [x, y], from the left and from the top, each from 0 to 1, or as null"
    found = _of_objects(path, listed, _place, "places", "[[0.3, 0.6], null, ...]", fix)
    for picture, row in (found or {}).items():
        if spot := on_one_spot(row):
            first, second = (list(row[i] or ()) for i in spot)
            raise DataError(f"{path}, {picture}: two objects too close, {first} and {second}; move one or give null")
    return found


def read_turns(path: Path, listed: dict[str, list[int]]) -> dict[str, list[float | None]] | None:
    """Reads `turns.json`, {file name: [turn or null, ...]}, as `read_places` reads places: parts of a full turn."""
    fix = "give each as a part of a full turn, at least 0 and below 1, or as null"
    return _of_objects(path, listed, _turn, "turns", "[0.25, null, ...]", fix)


def _series(objects: Tensor, scenes: list[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the pictures of one object (f,), and pairs of pictures before (p,), after (p,) one object was added.

    Both pictures of a pair are of one scene, and the list of the first is that of the second without its last object.
    Pairs are sorted by the lengths of their lists.
    """
    lists = [tuple(i for i in row if i >= 0) for row in objects.tolist()]
    keys = list(zip(scenes, lists, strict=True))
    at = {key: i for i, key in enumerate(keys)}
    alone = [at[key] == i for i, key in enumerate(keys)]  # True for the last picture with a key
    doubled = {key for key, last in zip(keys, alone, strict=True) if not last}
    pairs = [
        (at[earlier], at[scene, whole])
        for scene, whole in sorted(at.keys() - doubled, key=lambda key: (len(key[1]), at[key]))
        if (earlier := (scene, whole[:-1])) in at and earlier not in doubled
    ]
    first = [i for i, whole in enumerate(lists) if len(whole) == 1]
    before, after = torch.tensor(pairs, dtype=torch.int64).view(-1, 2).T
    return torch.tensor(first, dtype=torch.int64), before, after


def _connected(mask: Tensor, seed: Tensor) -> Tensor:
    """Returns the pixels of each mask (n, 64, 64) bool that are connected to its seed (n,), a flat pixel index.

    Rows of 64 pixels are packed into words of 64 bits, which is ten times as fast as an array of bool.
    """

    def packed(flags: Tensor) -> np.ndarray:
        return np.packbits(flags.numpy(), axis=2, bitorder="little").view(np.uint64)[..., 0]

    inside, grown = packed(mask), packed(F.one_hot(seed, mask[0].numel()).view_as(mask).bool() & mask)
    one, found = np.uint64(1), np.zeros_like(inside)
    while not np.array_equal(found, grown):
        found = grown
        wide = found | found << one | found >> one
        grown = wide.copy()
        grown[:, 1:] |= wide[:, :-1]
        grown[:, :-1] |= wide[:, 1:]
        grown &= inside
    bits = np.unpackbits(found[..., None].view(np.uint8), axis=2, bitorder="little")
    return torch.from_numpy(bits).bool()


def _blob(change: Tensor, share: float, least: int) -> tuple[Tensor, Tensor]:
    """Returns two masks of changes (n, 64, 64) int16: pixels that changed enough, and their blob with most change."""
    strength = change.flatten(1).topk(STRONGEST, dim=1).values[:, -1].float()
    mask = change > (share * strength).clamp(min=least)[:, None, None]
    weight = (change * mask).float()
    dense = F.avg_pool2d(weight[:, None], 8, 4)[:, 0]  # windows of 8 pixels, each 4 from the last
    window, ramp = dense.flatten(1).argmax(1, keepdim=True), torch.arange(change.shape[-1])
    starts = (4 * (window // dense.shape[-1]), 4 * (window % dense.shape[-1]))
    rows, columns = ((ramp >= start) & (ramp < start + 8) for start in starts)
    seed = (weight * (rows[:, :, None] & columns[:, None, :])).flatten(1).argmax(1)
    return mask, _connected(mask, seed)


def _middles(difference: Tensor, still: int, alone: float) -> Tensor:
    """Finds the places (n, 2) of new objects in differences (n, 3, 64, 64) int16, -1 where it is not one object.

    `still`: grey levels by which half of the pixels may differ; `alone`: the least share of all change in one object.
    """
    most, least = difference.amax(1), difference.amin(1)
    change, hue = torch.maximum(most, -least), most - least
    mask, blob = _blob(change, *CHANGE)
    hue_mask, hue_blob = _blob(hue, *HUE)
    # A gray object in front of a coloured one also changes the hue, but only over part of itself.
    coloured = (2 * hue_blob.sum((1, 2)) >= mask.sum((1, 2)))[:, None, None]
    change, mask, blob = (torch.where(coloured, *pair) for pair in ((hue, change), (hue_mask, mask), (hue_blob, blob)))
    size, weight = blob.sum((1, 2)), (change * mask).float()
    good = (size >= SMALLEST) & (size <= LARGEST) & ((weight * blob).sum((1, 2)) >= alone * weight.sum((1, 2)))
    quiet = (torch.maximum(most, -least) <= still).float().mean((1, 2)) >= 0.5
    ramp = (torch.arange(difference.shape[-1]) + 0.5) / difference.shape[-1]
    middle = torch.stack([(blob.sum(axis) * ramp).sum(1) for axis in (1, 2)], dim=1) / size.clamp(min=1)[:, None]
    return torch.where((good & quiet)[:, None], middle, -1.0)


def _compared(images: Tensor) -> Tensor:
    """Scales pictures (n, 3, s, s) uint8 to the size at which they are compared: (n, 3, 64, 64) int16."""
    size = images.shape[-1]
    if size > SIDE:  # a few at once: as float32 they take four times their memory
        parts = [F.avg_pool2d(part.float(), size // SIDE).round().to(torch.int16) for part in images.split(64)]
        return torch.cat(parts)
    return images.to(torch.int16).repeat_interleave(SIDE // size, 2).repeat_interleave(SIDE // size, 3)


def _floor(first: Tensor) -> Tensor | None:
    """Returns the floor (3, 64, 64) int16: the median of first pictures (n, 3, 64, 64) int16 without their objects.

    i-CLEVR's first object is always in the middle. There the pictures differ much from their median, and the floor is
    filled in smoothly from its surroundings (Laplace's equation). None if that is more than a quarter of the picture.
    """
    median = first.median(0).values
    spread = (first - median).abs().amax(1).median(0).values.float()
    covered = (spread > 3 * spread.median() + 3).float()
    covered = F.max_pool2d(covered[None, None], 9, 1, 4)[0, 0] > 0  # with its shadow
    if covered.float().mean() > 0.25:
        return None
    floor = torch.where(covered, median[:, ~covered].float().mean(1)[:, None, None], median.float())[None]
    for _ in range(1000 if covered.any() else 0):
        around = F.pad(floor, (1, 1, 1, 1), mode="replicate")
        smooth = (around[..., 2:, 1:-1] + around[..., :-2, 1:-1] + around[..., 1:-1, 2:] + around[..., 1:-1, :-2]) / 4
        floor = torch.where(covered, smooth, floor)
    return floor[0].round().to(torch.int16)


def recovered(images: Tensor, objects: Tensor, scenes: list[str]) -> Tensor:
    """Recovers the places (n, m, 2) of objects in series of pictures (n, 3, s, s) uint8, -1 where they are unclear.

    `objects` (n, m): indices in the order of the pictures' lists, then -1. `scenes`: the scene of each picture. All
    places are -1 if the pictures are not series. s is a multiple or a part of 64.
    """
    places = torch.full((*objects.shape, 2), -1.0)
    first, before, after = _series(objects, scenes)

    def middles(rows: Tensor, other: Tensor, still: int, alone: float) -> Tensor:
        """Compares pictures `rows` with pictures `other`, or with the one picture `other` (3, 64, 64)."""
        found = []
        for start in range(0, len(rows), CHUNK):
            part = slice(start, start + CHUNK)
            against = _compared(images[other[part]]) if other.ndim == 1 else other
            found.append(_middles(_compared(images[rows[part]]) - against, still, alone))
        return torch.cat(found)

    if not len(after):
        return places
    added = middles(after, before, *WITHIN)
    if (added[:, 0] >= 0).float().mean() < SERIES:
        return places
    if len(first) >= FEWEST:
        chosen = first[torch.linspace(0, len(first) - 1, min(len(first), 2 * CHUNK)).long()]
        floor = _floor(_compared(images[chosen]))
        if floor is not None:
            places[first, 0] = middles(first, floor, *FROM_FLOOR)
    numbers = (objects[after] >= 0).sum(1)
    for number in numbers.unique().tolist():  # in ascending order: each picture takes over the places of the one before
        rows = numbers == number
        places[after[rows]] = places[before[rows]]
        places[after[rows], number - 1] = added[rows]
    return places
