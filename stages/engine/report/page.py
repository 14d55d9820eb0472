"""Writes an experiment's page of tables and figures: report.json, report.md, report.html and its PNGs."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from stages.engine.files import write_atomically
from stages.engine.report import write_texts


@dataclass
class Page:
    """Collects tables and figures: call `add_table` and `add_figure` in reading order, then `write`."""

    title: str
    words: str
    parts: list[dict] = field(default_factory=list)

    def add_table(self, caption: str, head: list[str], rows: list[list]) -> None:
        """Adds a table. Cells are text or numbers; a float is shown with three decimals, None as a dash."""
        self.parts.append({"kind": "table", "caption": caption, "head": head, "rows": rows})

    def add_figure(self, name: str, picture: bytes, caption: str) -> None:
        """Adds a PNG, saved beside the page as <name>.png."""
        self.parts.append({"kind": "figure", "name": name, "picture": picture, "caption": caption})

    def add_words(self, words: str) -> None:
        """Adds a paragraph."""
        self.parts.append({"kind": "words", "words": words})

    def write(self, folder: Path, result: dict) -> Path:
        """Writes the files. report.json, which holds `result`, is last: it marks the page as complete."""
        for part in self.parts:
            if part["kind"] == "figure":
                write_atomically(folder / f"{part['name']}.png", part["picture"])
        write_texts(folder, "page", {"page": self})
        write_atomically(folder / "report.json", json.dumps(result, indent=2).encode())
        return folder / "report.html"
