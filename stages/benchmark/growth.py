"""`make growth`: measures how a step's time and memory grow with batch, networks, pictures and processes."""

import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import yaml

from stages.benchmark.cell import AXES, BATCH, PACK, in_a_process, measured, read_pack, write_pack
from stages.benchmark.clock import machine, measured_with, shown
from stages.benchmark.labels import PACK as LABELS
from stages.benchmark.labels import read_labels, write_labels
from stages.benchmark.subject import Subject
from stages.commands import COMMANDS
from stages.engine.command import Context, run_command
from stages.engine.config import Config
from stages.engine.errors import UserError
from stages.engine.log import progress, say
from stages.engine.machine import versions
from stages.engine.report.page import Page
from stages.engine.run import page_folder

PROCESSES = (1, 2)


def _sizes(text: str, flag: str = "pictures") -> list[int]:
    try:
        sizes = [int(n) for n in text.split(",") if n]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < BATCH:
        raise UserError(f"--{flag} {text!r}: give numbers of at least {BATCH}, such as 18000,180000")
    return sizes


def row(words: list[str], work: Callable[[], list[str]]) -> list[str]:
    """Returns a table row, or why it failed: a value that this machine cannot hold must not stop the others."""
    try:
        return words + work()
    except UserError as error:
        say(f"{' '.join(words)}: {error}")
        return [*words, f"failed: {error}"]


def step_row(context: Context, work: Path, axis: str, value: int) -> list[str]:
    def cells() -> list[str]:
        seconds, peak = in_a_process(measured, context, work, axis, value)
        return [shown(seconds), gibibytes(peak)]

    return row([axis, f"{value}"], cells)


def picture_row(context: Context, work: Path, count: int) -> list[str]:
    size = context.config.data.size
    whole = 3 * count * size**2  # bytes

    def cells() -> list[str]:
        free, needed = shutil.disk_usage(work).free, 2 * whole  # twice while it is written
        if needed > free:
            raise UserError(f"it needs {needed / 1e9:.0f} GB of disk, but only {free / 1e9:.0f} are free")
        try:
            write_pack(work / PACK, count, size)
            opened, read, step, peak = in_a_process(read_pack, context, work)
        finally:
            (work / PACK).unlink(missing_ok=True)
        return [shown(opened), f"{1 / read:,.0f}", shown(step), gibibytes(peak)]

    return row([f"{count:,}", gibibytes(whole)], cells)


def label_row(context: Context, work: Path, count: int) -> list[str]:
    def cells() -> list[str]:
        try:
            write_labels(work / LABELS, count, context.config.data.size)
            started, used, index, whole, held, mapped = in_a_process(read_labels, context, work)
        finally:
            for path in work.glob(f"*{LABELS}*"):  # its note of a check too
                path.unlink()
        return [shown(started), shown(used), shown(index), f"{1 / whole:,.0f}", gibibytes(held), gibibytes(mapped)]

    return row([f"{count:,}"], cells)


def process_row(config: Config, work: Path, count: int) -> list[str]:
    """Trains the LDM by `count` processes, each with its share of the cores or one GPU. Returns a table row."""
    threads, name = max(1, (os.cpu_count() or 1) // count), f"processes-{count}"

    def cells() -> list[str]:
        if config.device != "cpu" and 0 < torch.cuda.device_count() < count:
            raise UserError("there are fewer GPUs than processes")
        file = work / "processes.yaml"
        file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"] if count > 1 else []
        overrides = [f"name={name}", "uses.evaluator=subject", "uses.vae=subject", "ldm.steps=80"]
        overrides += ["ldm.log_every=10", "ldm.preview_every=80", "eval.steps=1"]
        command = [sys.executable, *launcher, "-m", "stages.ldm", "--config", str(file), *overrides]
        done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, capture_output=True)
        if done.returncode:
            raise UserError(done.stderr.decode(errors="replace").strip()[-200:])
        lines = (work / name / "ldm" / "metrics.jsonl").read_text().splitlines()
        rates = [line["images_per_second"] for line in map(json.loads, lines) if "images_per_second" in line]
        rate = statistics.median(rates[1:])  # the first interval warms up
        return [shown(config.ldm.batch / rate), f"{rate:.0f}"]

    return row([f"{count}", f"{threads}"], cells)


def gibibytes(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"


def clean(work: Path) -> None:
    """Removes what a killed run left, which can be as large as the largest pack."""
    for path in (*work.glob(f"*{PACK}*"), *work.glob(f"*{LABELS}*")):  # its temporary file too
        path.unlink()
    for count in PROCESSES:
        shutil.rmtree(work / f"processes-{count}", ignore_errors=True)


def main(context: Context) -> None:
    sizes, wanted = _sizes(context.arguments.pictures), context.arguments.only
    many = _sizes(context.arguments.labels, "labels")
    clean(context.hold("growth") / "work")
    folder = page_folder(context, "growth")
    work = (folder / "work").resolve()
    config = Subject(context, work).context.config
    about = machine(context)
    page = Page(
        f"{context.config.name}: how its cost grows",
        f"{measured_with(about)}. One value at a time "
        f"differs from the configuration, each line in a separate process; medians of times in turn; memory is the "
        f"peak in training steps, without what is mapped from files.",
    )
    steps = [(axis, value) for axis in AXES if axis in wanted for value in AXES[axis][0]]
    tables = {
        "steps": (
            "A training step",
            ["what grows", "to", "a step", "peak memory"],
            [partial(step_row, context, work, *step) for step in steps],
        ),
        "pictures": (
            "Pictures, read at random from the mapped pack",
            ["pictures", "pack", "opened in", "pictures read a second", "a stage-1 step", "peak memory"],
            [partial(picture_row, context, work, size) for size in sizes if "pictures" in wanted],
        ),
        "labels": (
            "Labels of many pictures, whose pixels are a hole in the file",
            [
                "pictures",
                "start",
                "of it CPU",
                "a batch's indices",
                "with labels, a second",
                "peak memory",
                "and mapped",
            ],
            [partial(label_row, context, work, size) for size in many if "labels" in wanted],
        ),
        "processes": (
            "Processes on this machine, the same global batch",
            ["processes", "threads each", "an LDM step", "pictures a second"],
            [partial(process_row, config, work, count) for count in PROCESSES if "processes" in wanted],
        ),
    }
    result: dict[str, object] = {"device": about, "versions": versions()}
    for name, (caption, head, jobs) in tables.items():
        if jobs:
            lines = [job() for job in progress(jobs, f"growth of {name}")]
            result[name] = lines
            page.add_table(caption, head, [[*line, *[None] * (len(head) - len(line))] for line in lines])
            path = page.write(folder, result)
    say((folder / "report.md").read_text())
    print(path)


if __name__ == "__main__":
    run_command(COMMANDS["benchmark.growth"], main)
