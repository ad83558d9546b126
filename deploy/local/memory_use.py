"""Memory of a process, as the kernel tells it."""

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
