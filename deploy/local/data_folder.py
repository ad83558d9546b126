"""Files in a stack's data folder: addresses and state as JSON, and a lock that allows one stack per folder."""

import fcntl
import json
import os
from pathlib import Path
from typing import Any

ENDPOINTS_FILE = "endpoints.json"
SUPERVISOR_FILE = "supervisor.json"
_LOCK_FILE = "supervisor.lock"


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replaces the file atomically. Only its owner can read it, because an address may hold a password."""
    temporary = path.with_name(f".{path.name}.new")
    descriptor = os.open(temporary, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "w") as handle:
        json.dump(content, handle, indent=2)
        handle.write("\n")
    temporary.replace(path)


def read_json(path: Path) -> dict[str, Any] | None:
    """Returns the JSON object in the file, or None when the file is missing or holds anything else."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


class AlreadyRunning(RuntimeError):
    """Another stack runs on this data folder. `pid` is the id of its supervisor, 0 when unknown."""

    def __init__(self, pid: int) -> None:
        super().__init__(f"pid {pid}")
        self.pid = pid


class InstanceLock:
    """A file lock held while a supervisor runs. The kernel releases it when the process ends, however it ends."""

    def __init__(self, data_dir: Path) -> None:
        self._descriptor = os.open(data_dir / _LOCK_FILE, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = _read_pid(self._descriptor)
            os.close(self._descriptor)
            raise AlreadyRunning(pid) from None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)


def running_pid(data_dir: Path) -> int | None:
    """Returns the process id of the supervisor that runs on this data folder, or None."""
    try:
        descriptor = os.open(data_dir / _LOCK_FILE, os.O_RDWR)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read_pid(descriptor) or None
    finally:
        os.close(descriptor)
    return None


def _read_pid(descriptor: int) -> int:
    content = os.pread(descriptor, 32, 0).strip()
    return int(content) if content.isdigit() else 0
