"""Describes the machine, and reads CPU and memory use of processes from /proc."""

import asyncio
import os
import platform
import sys
from pathlib import Path


def machine() -> str:
    """Returns cores, CPU model, Python version and operating system in one line."""
    return f"{_usable_cores()} cores of {_cpu_model()}, Python {sys.version.split()[0]}, {platform.system()}"


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def peak_resident_mb(pid: int) -> float:
    """Returns the peak resident memory of a running process in MB. Raises OSError if /proc does not have it."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/{pid}/status has no VmHWM")


def cpu_seconds(pid: int) -> float:
    """Returns the CPU seconds of a running process, user and system. Raises OSError if /proc does not have them."""
    # Fields 14 and 15 of proc(5), in clock ticks, counted from the name in brackets, which may contain spaces.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def pin_to_one_core(pid: int) -> None:
    """Pins a running process, with its current and future threads, to the machine's last core."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {max(os.sched_getaffinity(0))})


async def busy_share(seconds: float = 1.0) -> float:
    """Returns the share of the machine's CPU time used within `seconds`, 0 to 1; 0 if /proc does not have it."""
    before = _cpu_times()
    await asyncio.sleep(seconds)
    after = _cpu_times()
    spent = [late - early for early, late in zip(before, after, strict=True)]
    idle = sum(spent[3:5])
    return 1 - idle / sum(spent) if sum(spent) else 0.0


def _cpu_times() -> list[int]:
    try:
        return [int(ticks) for ticks in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    except OSError:
        return []
