"""Converts object names, label sets and text with places to indices and tensors, and reads label files."""

import difflib
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor

SHAPES = ("cube", "sphere", "cylinder")
COLOURS = ("gray", "red", "blue", "green", "brown", "purple", "cyan", "yellow")
SPOT = 0.02  # of the picture's side: the smallest distance allowed between two objects
NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[-+]?[0-9]+)?")

Place = tuple[float, float]  # x to the right, y downwards, each in [0, 1] of the picture


def _spoken(name: str) -> str:
    """Normalises a name for comparison: spacing and case do not matter."""
    return " ".join(name.split()).casefold()


class DataError(Exception):
    """An error in the user's data: one line that names the file and the fix."""


def on_one_spot(places: Sequence[Place | None]) -> tuple[int, int] | None:
    """Returns the indices of the first two known places that are closer than `SPOT`, or None."""
    known = [(i, place) for i, place in enumerate(places) if place is not None]
    close = ((i, j) for (i, a), (j, b) in combinations(known, 2) if math.dist(a, b) < SPOT)
    return next(close, None)


def as_text(names: Iterable[str], places: Iterable[Place | None]) -> str:
    """Writes objects and their places, or None, as `Vocabulary.parse` reads them: "red cube at 0.3 0.6, gray cube"."""
    pairs = zip(names, places, strict=True)
    return ", ".join(name + (f" at {place[0]!r} {place[1]!r}" if place else "") for name, place in pairs)


class Vocabulary:
    """The object names, in the order of their indices."""

    def __init__(self, names: list[str]):
        self.names = list(names)
        self.index = {name: i for i, name in enumerate(self.names)}

    def __len__(self) -> int:
        return len(self.names)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.names == other.names

    def indices(self, names: list[str], where: str) -> list[int]:
        """Returns the indices of one label set. Raises DataError for an unknown name, a repeated name or no name."""
        if not names:
            raise DataError(f"{where}: an empty label set; name at least one object")
        found = []
        for name in names:
            if name not in self.index:
                near = difflib.get_close_matches(str(name), self.names, n=1, cutoff=0.0)
                raise DataError(f"{where}: unknown object {name!r}; did you mean {near[0]!r}?")
            if self.index[name] in found:
                raise DataError(f"{where}: {name!r} appears twice in one label set; name each object once")
            found.append(self.index[name])
        return found

    def parse(self, text: str) -> tuple[list[int], list[Place | None]]:
        """Parses text, "red cube at 0.3 0.6, cyan sphere", into indices in this order, and their places or None.

        Spacing and case do not matter, and grey means gray. A name may contain the word "at": it introduces a place
        only after a known name. Raises DataError.
        """
        where, asked = f"labels {text!r}", []
        for part in filter(None, map(_spoken, text.split(","))):
            asked.append(self._asked(part, where))
        indices, places = self.indices([name for name, _ in asked], where), [place for _, place in asked]
        if spot := on_one_spot(places):
            first, second = (asked[i][0] for i in spot)
            raise DataError(f"{where}: {first!r} and {second!r} are too close; place them {SPOT:g} or more apart")
        return indices, places

    def _known(self, spoken: str) -> str | None:
        """Returns the name that matches an output of `_spoken`, or None."""
        folded = {_spoken(name): name for name in self.names}
        return folded.get(spoken) or folded.get(spoken.replace("grey", "gray"))

    def _asked(self, part: str, where: str) -> tuple[str, Place | None]:
        """Splits one part of a text, "red cube at 0.3 0.6", into a name for `indices` and the place, if given."""
        before, at, after = f"{part} ".rpartition(" at ")
        if self._known(part) or not at:
            return self._known(part) or part, None
        name, numbers = self._known(before), after.split()
        whole = len(numbers) == 2 and all(map(NUMBER.fullmatch, numbers))
        if name is None:  # `indices` suggests the nearest name
            return (before if whole else part), None
        x, y = map(float, numbers) if whole else (math.nan, math.nan)
        if not (0 <= x <= 1 and 0 <= y <= 1):
            fault = "outside the picture" if whole else "not a place"
            fix = f"write {name + ' at 0.3 0.6'!r}: from the left and from the top, each from 0 to 1"
            raise DataError(f"{where}: {('at ' + after).strip()!r} is {fault}; {fix}")
        return name, (x, y)

    def describe(self, labels: Tensor) -> list[str]:
        """Describes each row of multi-hot labels (n, len(self)) as "red cube, cyan sphere"."""
        return [", ".join(self.names[i] for i in row.nonzero().flatten().tolist()) for row in labels]

    def describe_placed(self, objects: Tensor, places: Tensor) -> list[str]:
        """Describes indices (n, m) with places (n, m, 2), -1 for none, as "red cube at 0.30 0.60, cyan sphere"."""

        def words(index: int, x: float, y: float) -> str:
            return self.names[index] + (f" at {x:.2f} {y:.2f}" if x >= 0 else "")

        rows = zip(objects.tolist(), places.tolist(), strict=True)
        return [", ".join(words(i, *p) for i, p in zip(*row, strict=True) if i >= 0) for row in rows]


CLEVR = Vocabulary([f"{colour} {shape}" for shape in SHAPES for colour in COLOURS])


def read_json(path: Path) -> object:
    """Returns a JSON file's content. Raises DataError if it is missing, not UTF-8, not JSON, or repeats a key."""

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) != len(pairs):
            twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
            raise DataError(f"{path}: {twice!r} appears twice; remove one")
        return found

    try:
        content = path.read_text(encoding="utf-8-sig")  # a byte order mark, as some editors write, is skipped
        return json.loads(content, object_pairs_hook=unique)
    except FileNotFoundError:
        raise DataError(f"{path} is missing; the README, 'Your own data', lists the files of a data folder") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not valid JSON ({error.msg}); {_json_fix(error)}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({str(error).splitlines()[0]}); restore the file") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; put a readable file there") from None


def _json_fix(error: json.JSONDecodeError) -> str:
    """Returns how to fix a JSON file with this error."""
    if re.search(r",\s*$", error.doc[: error.pos]) and error.doc[error.pos : error.pos + 1] in ("]", "}"):
        return "remove the comma before it"
    if error.msg == "Extra data":
        return "the file must hold one value, not one a line"
    if "trailing comma" in error.msg:  # Python 3.13 says it itself
        return "remove the comma"
    return "restore the file"


def read_vocabulary(path: Path) -> Vocabulary:
    """Reads `objects.json`, {name: index}, whose indices are 0 .. n-1, each once."""
    content = read_json(path)
    if not isinstance(content, dict) or not content:
        raise DataError(f'{path}: expected {{"gray cube": 0, ...}}')
    values = list(content.values())
    whole = all(isinstance(v, int) and not isinstance(v, bool) for v in values)
    if not whole:
        name, value = next((n, v) for n, v in content.items() if not isinstance(v, int) or isinstance(v, bool))
        raise DataError(f"{path}: the index of {name!r} is {json.dumps(value)}; write a whole number without quotes")
    if sorted(values) != list(range(len(content))):
        raise DataError(f"{path}: the indices must be 0 to {len(content) - 1}, each once")
    spoken = list(map(_spoken, content))
    for name, words in zip(content, spoken, strict=True):
        if not words or "," in words or spoken.count(words) > 1:
            raise DataError(
                f"{path}: {name!r} cannot be asked for; names must not contain a comma, be empty or differ only in case"
            )
    return Vocabulary(sorted(content, key=content.__getitem__))


def _is_label_list(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def distinct(objects: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the label sets of lists (n, m), -1 for none: sorted rows (u, m) int64, and each list's set (n,) int64."""
    ordered, base = objects.long().sort(dim=1).values, int(objects.max()) + 2 if len(objects) else 2
    if base ** objects.shape[1] >= 2**62:
        return torch.unique(ordered, dim=0, return_inverse=True)
    powers = base ** torch.arange(objects.shape[1])  # a row as one number: ten times as fast
    numbers, which = torch.unique(((ordered + 1) * powers).sum(1), return_inverse=True)
    return numbers[:, None] // powers % base - 1, which


def withheld(objects: Tensor, share: float) -> Tensor:
    """Marks a fixed `share` of the sets of two or more labels, chosen by hash: lists (n, m), -1 for none -> (n,) bool.

    Whether a set is marked depends only on the set, not on the order of its list.
    """

    def place(row: list[int]) -> float:
        digest = hashlib.sha256(" ".join(map(str, row)).encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64

    def marked(rows: Tensor) -> Tensor:
        sets, which = distinct(rows)
        lists = [[index for index in row if index >= 0] for row in sets.tolist()]
        return torch.tensor([len(row) > 1 and place(row) < share for row in lists], dtype=torch.bool)[which]

    return torch.cat([marked(rows) for rows in objects.split(2**20)])


def read_conditions(path: Path, vocabulary: Vocabulary) -> list[list[int]]:
    """Reads `test.json`, [[name, ...], ...], as the indices of each set, in its order."""
    content = read_json(path)
    if not isinstance(content, list) or not content or not all(map(_is_label_list, content)):
        raise DataError(f'{path}: expected a list of label lists, such as [["red cube"], ["cyan sphere", "gray cube"]]')
    return [vocabulary.indices(names, f"{path}, set {i}") for i, names in enumerate(content)]


def read_picture_labels(path: Path, vocabulary: Vocabulary) -> dict[str, list[int]]:
    """Reads `train.json`, {file name: [name, ...]}, as the indices of each picture's objects, in list order."""
    content = read_json(path)
    if not isinstance(content, dict) or not content or not all(map(_is_label_list, content.values())):
        raise DataError(f'{path}: expected {{"picture.png": ["red cube", ...], ...}}')
    return {file: vocabulary.indices(names, f"{path}, {file}") for file, names in content.items()}
