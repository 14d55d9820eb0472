"""Writes an evaluation's result as report.json, report.md and a self-contained report.html."""

import base64
import io
import itertools
import json
from pathlib import Path

import jinja2
import matplotlib

from stages.engine.files import write_atomically

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TEMPLATES = Path(__file__).parent


def data_uri(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def curve(lines: list[dict], names: list[str], title: str, log: bool = False) -> bytes | None:
    """Plots metrics over steps as a PNG. Returns None if none was logged."""
    figure, axes = plt.subplots(figsize=(5, 2.6), dpi=110)
    for name in names:
        points = [(line["step"], line[name]) for line in lines if name in line]
        if points:
            axes.plot(*zip(*points, strict=True), label=name.replace("_", " "), linewidth=1.4)
    found = bool(axes.lines)
    if found:
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=7, frameon=False)
        if log:
            axes.set_yscale("log")
        figure.tight_layout()
    picture = drawn(figure)
    return picture if found else None


def error_bars(axis: plt.Axes, series: dict[str, list[tuple[float, float, float]]], line: str = "-") -> None:
    """Draws (place, mean, deviation) points with their deviations as bars, with one colour and marker per series."""
    for (name, points), marker in zip(series.items(), itertools.cycle("os^Dv")):
        places, means, deviations = zip(*points, strict=True)
        axis.errorbar(
            places,
            means,
            deviations,
            label=name,
            elinewidth=0.8,
            marker=marker,
            markersize=4,
            linestyle=line,
            linewidth=1,
        )
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=7, frameon=False, ncols=len(series), loc="lower right", bbox_to_anchor=(1, 1))  # above bars


def drawn(figure: plt.Figure) -> bytes:
    """Saves a matplotlib figure as a PNG, and closes it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    return buffer.getvalue()


def write_texts(folder: Path, template: str, content: dict) -> None:
    """Writes report.md and report.html from <template>.md.jinja and <template>.html.jinja; the page is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=jinja2.select_autoescape(["html.jinja"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"uri": data_uri, "figure": _figure, "cell": _cell}
    for suffix in ("md", "html"):
        text = environment.get_template(f"{template}.{suffix}.jinja").render(content)
        write_atomically(folder / f"report.{suffix}", text.encode())


def _figure(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else "–"


def _cell(value: object) -> str:
    return _figure(value) if value is None or isinstance(value, float) else str(value)


def write_report(folder: Path, result: dict, view: dict) -> None:
    """Writes the three files. `result` is report.json; `view` adds the pictures and curves for the page."""
    write_texts(folder, "report", {"result": result, **view})
    write_atomically(folder / "report.json", json.dumps(result, indent=2).encode())  # last: the report is complete
