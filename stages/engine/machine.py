"""What a result may depend on, and what it costs: versions, the device, memory."""

import platform
import resource
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


def versions() -> dict[str, str | None]:
    """The versions a result may depend on."""
    packages = ("torch", "torchvision", "vector-quantize-pytorch", "lpips", "mitsuba", "numpy")
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # mitsuba and lpips are not needed everywhere
            found[name] = None
    return {"python": platform.python_version()} | found


def describe_device(device: torch.device) -> str:
    """The device in words, for provenance."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        name = names[0].partition(":")[2].strip()
    except (OSError, IndexError):
        name = platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"


def reset_peak(device: torch.device) -> None:
    """From here on `peak_memory` counts."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # of Linux
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int:
    """The most bytes held since `reset_peak`, without what is mapped from files and can be let go of.

    Where the system tells nothing of that kind (not Linux): the most since the process began, files included.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        kibibytes = {name: int(rest.split()[0]) for name, _, rest in (x.partition(":") for x in lines) if "kB" in rest}
        return 1024 * (kibibytes["VmHWM"] - kibibytes["RssFile"])
    except (OSError, KeyError):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
