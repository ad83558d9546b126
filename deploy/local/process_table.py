"""What the kernel tells of a process by its id."""

import os
from pathlib import Path

_KB_PER_MB = 1024


def resident_mb(pid: int) -> float:
    """Resident memory in MB; 0 when the process is gone, or on a system that does not tell."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    for line in status.splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / _KB_PER_MB
    return 0.0


def is_running(pid: int) -> bool:
    """Whether there is such a process; one that has ended and only waits to be collected is none."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except PermissionError:
        return True
    except ProcessLookupError:
        return False
    except OSError:
        return not Path("/proc/self").exists()  # it went in between; without /proc, the signal has told
