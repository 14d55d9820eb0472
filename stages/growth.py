"""`make growth`: how a step's time and memory grow with the batch, the networks, the pictures and the processes."""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import torch
import yaml

from stages.benchmark.cell import AXES, BATCH, PACK, PICTURE_BYTES, in_a_process, measured, read_pack, write_pack
from stages.benchmark.clock import add_seconds, shown
from stages.benchmark.subject import Subject
from stages.engine.command import Context, add_fresh, command
from stages.engine.errors import UserError
from stages.engine.log import progress, say
from stages.engine.report.page import Page
from stages.engine.run import describe_device, versions

PROCESSES = (1, 2)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pictures", default="18000,180000,1800000", metavar="N,...", help="sizes of made-up packs, 12 KiB a picture"
    )
    parser.add_argument("--only", default="", metavar="NAME,...", help=f"of {', '.join(AXES)}, pictures, processes")
    add_seconds(parser)
    add_fresh(parser)


def _sizes(text: str) -> list[int]:
    try:
        sizes = [int(n) for n in text.split(",") if n]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < BATCH:
        raise UserError(f"--pictures {text!r}: give numbers of {BATCH} and more, such as 18000,180000")
    return sizes


def picture_rows(context: Context, work: Path, sizes: list[int]) -> Iterator[list[str]]:
    """One a number of pictures. A pack that the disk has no room for is left out, and said."""
    for count in sizes:
        free, needed = shutil.disk_usage(work).free, 2 * count * PICTURE_BYTES  # twice while it is written
        if needed > free:
            say(f"{count} pictures are left out: they need {needed / 1e9:.0f} GB of disk, {free / 1e9:.0f} are free")
            continue
        try:
            write_pack(work / PACK, count)
            opened, read, step, peak = in_a_process(read_pack, context, work)
        finally:
            (work / PACK).unlink(missing_ok=True)
        pack = gibibytes(count * PICTURE_BYTES)
        yield [f"{count:,}", pack, shown(opened), f"{1 / read:,.0f}", shown(step), gibibytes(peak)]


def process_rows(subject: Subject, work: Path) -> Iterator[list[str]]:
    """The LDM's training by one and by several processes, each with its share of the cores or a GPU of its own."""
    config, device = subject.context.config, subject.context.device
    file = work / "processes.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    for count in PROCESSES:
        if device.type == "cuda" and count > torch.cuda.device_count():
            say(f"{count} processes are left out: there are not as many GPUs")
            continue
        threads = max(1, (os.cpu_count() or 1) // count)
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"] if count > 1 else []
        overrides = [f"name=processes-{count}", "uses.evaluator=subject", "uses.vae=subject"]
        overrides += ["ldm.steps=60", "ldm.log_every=20", "ldm.preview_every=60", "eval.steps=1"]
        command = [sys.executable, *launcher, "-m", "stages.ldm", "--config", str(file), "--fresh", *overrides]
        done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, capture_output=True)
        if done.returncode:
            raise UserError(f"{count} processes ended: {done.stderr.decode(errors='replace').strip()[-200:]}")
        lines = (work / f"processes-{count}" / "ldm" / "metrics.jsonl").read_text().splitlines()
        rates = [line["images_per_second"] for line in map(json.loads, lines) if "images_per_second" in line]
        yield [str(count), str(threads), shown(config.ldm.batch / rates[-1]), f"{rates[-1]:.0f}"]


def gibibytes(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"


def main(context: Context) -> None:
    sizes, others = _sizes(context.arguments.pictures), ("pictures", "processes")
    wanted = [name.strip() for name in context.arguments.only.split(",") if name.strip()] or [*AXES, *others]
    if unknown := set(wanted) - {*AXES, *others}:
        raise UserError(f"--only {sorted(unknown)[0]}: what grows is {', '.join((*AXES, *others))}")
    folder = context.hold("growth")
    work = (folder / "work").resolve()
    subject = Subject(context, work)
    about = f"{describe_device(context.device)}, {str(context.dtype).removeprefix('torch.')}"
    page = Page(
        f"{context.config.name}: how its cost grows",
        f"{about}; {date.today()}; {', '.join(f'{k} {v}' for k, v in versions().items() if v)}. One thing at a time "
        f"from the configuration's value; medians of calls; each line in a process of its own, with its peak memory.",
    )
    result: dict[str, object] = {"device": about, "versions": versions()}
    rows = []
    for axis, value in progress([(a, v) for a in AXES if a in wanted for v in AXES[a][0]], "growth"):
        seconds, peak = in_a_process(measured, context, work, axis, value)
        rows.append([axis, f"{value}", shown(seconds), gibibytes(peak)])
    if rows:
        result["steps"] = rows
        page.add_table("A training step", ["what grows", "to", "a step", "peak memory"], rows)
    if "pictures" in wanted:
        head = ["pictures", "pack", "opened in", "pictures read a second", "a stage-1 step", "peak memory"]
        result["pictures"] = list(picture_rows(context, work, sizes))
        page.add_table("Pictures, read at random from the mapped pack", head, result["pictures"])
    if "processes" in wanted:
        head = ["processes", "threads each", "an LDM step", "pictures a second"]
        result["processes"] = list(process_rows(subject, work))
        page.add_table("Processes on this machine, the same global batch", head, result["processes"])
    path = page.write(folder, result)
    say((folder / "report.md").read_text())
    print(path)


if __name__ == "__main__":
    command("Measures how steps grow with batch, networks, pictures, processes.", main, add_arguments, alone=True)
