"""Describes what a result may depend on and what it costs: versions, the device, memory."""

import platform
import resource
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


def versions() -> dict[str, str | None]:
    """Returns the versions a result may depend on."""
    packages = ("torch", "torchvision", "vector-quantize-pytorch", "lpips", "mitsuba", "numpy")
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # mitsuba and lpips are not needed everywhere
            found[name] = None
    return found


def describe_device(device: torch.device) -> str:
    """Returns the device in words, for provenance."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        name = names[0].partition(":")[2].strip()
    except (OSError, IndexError):
        name = platform.processor() or platform.machine()
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' * (threads != 1)}"


def reset_peak(device: torch.device) -> bool:
    """Starts `peak_memory`'s count. Returns False if the system cannot: on a CPU without Linux's /proc."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_memory(device: torch.device) -> int:
    """Returns the most bytes held since `reset_peak`: on a GPU all, on a CPU less the file pages that are mapped now.

    Those pages can be released. Without Linux's /proc: the most since the process began, files included.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        kibibytes = {name: int(rest.split()[0]) for name, _, rest in (x.partition(":") for x in lines) if "kB" in rest}
        return 1024 * max(kibibytes["VmHWM"] - kibibytes["RssFile"], kibibytes["RssAnon"])
    except (OSError, KeyError):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
