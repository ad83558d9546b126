"""What the numbers were measured on."""

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
