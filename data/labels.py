"""Object names <-> indices, label sets <-> multi-hot vectors, and the files that hold them."""

import difflib
import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor

SHAPES = ("cube", "sphere", "cylinder")
COLOURS = ("gray", "red", "blue", "green", "brown", "purple", "cyan", "yellow")


def _spoken(name: str) -> str:
    """A name as it is compared with what is asked for: spacing and case are free."""
    return " ".join(name.split()).casefold()


class DataError(Exception):
    """A fault in the user's data: one line that names the file and the mend."""


class Vocabulary:
    """The object names, in the order of their indices."""

    def __init__(self, names: list[str]):
        self.names = list(names)
        self.index = {name: i for i, name in enumerate(self.names)}

    def __len__(self) -> int:
        return len(self.names)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.names == other.names

    __hash__ = None

    def indices(self, names: list[str], where: str) -> list[int]:
        """The indices of one label set. Raises DataError for an unknown, a repeated or no name."""
        if not names:
            raise DataError(f"{where}: an empty label set; name at least one object")
        found = []
        for name in names:
            if name not in self.index:
                near = difflib.get_close_matches(str(name), self.names, n=1, cutoff=0.0)
                raise DataError(f"{where}: unknown object {name!r}; did you mean {near[0]!r}?")
            if self.index[name] in found:
                raise DataError(f"{where}: {name!r} stands twice in one label set; name each object once")
            found.append(self.index[name])
        return found

    def multi_hot(self, label_sets: list[list[int]]) -> Tensor:
        """Label sets as a float tensor (n, len(self)) of zeros and ones."""
        labels = torch.zeros(len(label_sets), len(self))
        for row, indices in zip(labels, label_sets, strict=True):
            row[indices] = 1.0
        return labels

    def parse(self, text: str) -> Tensor:
        """Text, "red cube, cyan sphere" -> (1, len(self)) multi-hot. Spacing and case are free, grey may be gray."""
        folded = {_spoken(name): name for name in self.names}

        def known(part: str) -> str:
            name = _spoken(part)
            return folded.get(name) or folded.get(name.replace("grey", "gray")) or name

        names = [known(part) for part in text.split(",")]
        return self.multi_hot([self.indices([n for n in names if n], f"labels {text!r}")])

    def describe(self, labels: Tensor) -> list[str]:
        """Multi-hot (n, len(self)) -> "red cube, cyan sphere" for each row."""
        return [", ".join(self.names[i] for i in row.nonzero().flatten().tolist()) for row in labels]


CLEVR = Vocabulary([f"{colour} {shape}" for shape in SHAPES for colour in COLOURS])


def read_json(path: Path):
    """A JSON file's content. Raises DataError where it is missing, not UTF-8, not JSON, or repeats a key."""

    def unique(pairs):
        keys = [key for key, _ in pairs]
        if len(set(keys)) != len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise DataError(f"{path}: {twice!r} stands twice; remove one")
        return dict(pairs)

    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique)
    except FileNotFoundError:
        raise DataError(f"{path} is missing; a data folder holds the lab's files (README, 'Your own data')") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({str(error).splitlines()[0]}); restore the file") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None


def read_vocabulary(path: Path) -> Vocabulary:
    """`objects.json`: {name: index}, the indices being 0 .. n-1, each once."""
    content = read_json(path)
    if not isinstance(content, dict) or not content:
        raise DataError(f'{path}: expected {{"gray cube": 0, ...}}')
    values = list(content.values())
    whole = all(isinstance(v, int) and not isinstance(v, bool) for v in values)
    if not whole or sorted(values) != list(range(len(content))):
        raise DataError(f"{path}: the indices must be 0 to {len(content) - 1}, each once")
    spoken = list(map(_spoken, content))
    for name, words in zip(content, spoken, strict=True):
        if not words or "," in words or spoken.count(words) > 1:
            raise DataError(f"{path}: {name!r} cannot be asked for: names hold no comma and differ in more than case")
    return Vocabulary(sorted(content, key=content.get))


def _is_label_list(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def withheld(labels: Tensor, share: float) -> Tensor:
    """(n, k) multi-hot -> (n,) bool: sets of two and more labels of which a fixed `share` is withheld, by their hash.

    Whether a set is withheld depends on nothing but the set.
    """

    def place(row: list[int]) -> float:
        digest = hashlib.sha256(" ".join(map(str, row)).encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64

    rows = [row.nonzero().flatten().tolist() for row in labels]
    return torch.tensor([len(row) > 1 and place(row) < share for row in rows], dtype=torch.bool)


def read_conditions(path: Path, vocabulary: Vocabulary) -> Tensor:
    """`test.json`: [[name, ...], ...] -> multi-hot (n, len(vocabulary))."""
    content = read_json(path)
    if not isinstance(content, list) or not content or not all(map(_is_label_list, content)):
        raise DataError(f'{path}: expected a list of label lists, such as [["red cube"], ["cyan sphere", "gray cube"]]')
    return vocabulary.multi_hot([vocabulary.indices(names, f"{path}, set {i}") for i, names in enumerate(content)])


def read_picture_labels(path: Path, vocabulary: Vocabulary) -> tuple[list[str], Tensor]:
    """`train.json`: {file name: [name, ...]} -> file names and their multi-hot labels (n, len(vocabulary))."""
    content = read_json(path)
    if not isinstance(content, dict) or not content or not all(map(_is_label_list, content.values())):
        raise DataError(f'{path}: expected {{"picture.png": ["red cube", ...], ...}}')
    sets = [vocabulary.indices(names, f"{path}, {file}") for file, names in content.items()]
    return list(content), vocabulary.multi_hot(sets)
