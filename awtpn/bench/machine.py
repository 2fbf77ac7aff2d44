"""Describe this machine, measure peak memory, and format tables."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch

from shards.safe_io.versions import installed_version

PACKAGES = ("torch", "triton", "numpy", "webdataset", "mosaicml-streaming", "litdata")


def describe(device: str, threads: int) -> str:
    """One line of Markdown: date, hardware, load, system and versions."""
    found = [f"{p} {version}" for p in PACKAGES if (version := installed_version(p))]
    return (
        f"{datetime.now(UTC):%Y-%m-%d}; {cpu()}, {os.cpu_count()} cores, {ram() / 2**30:.0f} GiB; {gpu()}; "
        f"{threads} torch threads, on {device}; load {os.getloadavg()[0]:.1f} at the start; "
        f"{platform.system()} {platform.release()}; Python {platform.python_version()}, {', '.join(found)}."
    )


def hardware(device: str) -> str:
    """The name of the GPU, or of the CPU."""
    return torch.cuda.get_device_name() if device == "cuda" else cpu()


def cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or "CPU")


def gpu() -> str:
    if not torch.cuda.is_available():
        return "no GPU"
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    name = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"{name} ({memory:.0f} GiB), CUDA {torch.version.cuda}"


def ram() -> int:
    """Bytes of the machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def synchronize(device: str) -> None:
    """Wait until the device has finished all queued work."""
    if device == "cuda":
        torch.cuda.synchronize()


def resident(kind: str) -> int:
    """Resident memory of this process in bytes (Linux): `kind` is VmRSS, or VmHWM for its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) << 10


def start_peak(device: str) -> int:
    """Reset the peak; returns the bytes in use now."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmHWM")


def read_peak(device: str) -> int:
    """Peak bytes in use since `start_peak`."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else resident("VmHWM")


def peak_allocated(work: Callable[[], object]) -> int:
    """Peak bytes that PyTorch's CPU allocator had given out during `work`, beyond those before."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        work()
    assert profile.profiler is not None
    changes = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    peak = current = 0
    for change in sorted(changes, key=lambda e: e.start_ns()):
        current += change.nbytes()
        peak = max(peak, current)
    return peak


def child_environment() -> dict[str, str]:
    """The environment for a child process that imports this same package."""
    paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    return dict(os.environ) | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
