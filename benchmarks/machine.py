"""What the numbers were measured on."""

import asyncio
import os
import platform
import sys
from pathlib import Path


def machine() -> str:
    """Cores, CPU model, Python and system, in one line."""
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
    """The most resident memory that a running process ever had, in MB. Raises OSError where /proc does not tell."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/{pid}/status names no VmHWM")


def cpu_seconds(pid: int) -> float:
    """The CPU time that a running process has had, user and system. Raises OSError where /proc does not tell."""
    # After the name in brackets, which may hold spaces: fields 14 and 15 of proc(5), in clock ticks.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def hold_to_one_core(pid: int) -> None:
    """Keeps a running process, with the threads it has and will have, on the machine's last core."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {max(os.sched_getaffinity(0))})


async def busy_share(seconds: float = 1.0) -> float:
    """How much of the machine's CPU time went to anything within `seconds`, 0..1; 0 where /proc does not tell."""
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
