"""Compares rows of `make reproduce` that differ in one choice, over several trainings each."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance

from stages.experiments.systems import SYSTEMS

# words -> the rows of both sides, one a training seed
PAIRS = {
    "conditions on both paths against the up path alone": tuple(
        tuple(f"{key}{suffix}" for suffix in ("", "-seed1", "-seed2")) for key in ("ddpm-multiply-add", "ddpm-up")
    )
}
# what rows that are compared must share, besides sampling seeds and what the command line asked for
ALIKE = ("steps", "configuration", "judge", "real_accuracy")


@dataclass(frozen=True)
class Row:
    """Holds a row's accuracy by test set, and what else it must share with the rows that it is compared with."""

    accuracies: Mapping[str, float]
    made: tuple[object, ...]

    @classmethod
    def of(cls, key: str, row: Mapping, figures: Mapping, names: Iterable[str]) -> "Row":
        """Reads a row of a report: all but its own choice and training seed must be the same in compared rows."""
        asked = [setting for setting in row.get("settings", ()) if setting not in SYSTEMS[key].changes]
        made = *(row.get(name) for name in ALIKE), tuple(row.get("seeds", ())), tuple(asked)
        return cls({name: figures[name]["accuracy"] for name in names if name in figures}, made)


@dataclass(frozen=True)
class Compared:
    """Holds two sides' accuracies by test set, one a training, for the sets that all of them have."""

    first: dict[str, list[float]]
    second: dict[str, list[float]]

    @property
    def trainings(self) -> str:
        """How many trainings each side has, as "3 and 2"."""
        return " and ".join(str(len(next(iter(side.values())))) for side in (self.first, self.second))

    def difference(self, name: str) -> tuple[float, float]:
        """Returns the difference of the means on a test set, and its standard error."""
        first, second = self.first[name], self.second[name]
        error = (variance(first) / len(first) + variance(second) / len(second)) ** 0.5
        return fmean(first) - fmean(second), error


def compared(pair: Sequence[Sequence[str]], rows: Mapping[str, Row]) -> Compared | None:
    """Compares the rows of a pair that there are.

    Returns None without two or more on each side, without a test set that all of them have, or where they were not
    made alike: then a difference would not be the choice's.
    """
    sides = [[rows[key] for key in keys if key in rows] for keys in pair]
    every = [row for side in sides for row in side]
    if min(map(len, sides)) < 2 or len({row.made for row in every}) > 1:
        return None
    names = [name for name in every[0].accuracies if all(name in row.accuracies for row in every)]
    if not names:
        return None
    return Compared(*({name: [row.accuracies[name] for row in side] for name in names} for side in sides))
