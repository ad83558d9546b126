"""One stack to a data folder: who holds the lock runs it."""

import fcntl
import os
from pathlib import Path

_LOCK_FILE = "supervisor.lock"


class AlreadyRunning(RuntimeError):
    """Another stack runs on this data folder. `pid` is its supervisor's, 0 when unknown."""

    def __init__(self, pid: int) -> None:
        super().__init__(f"pid {pid}")
        self.pid = pid


class InstanceLock:
    """Held for the life of a supervisor; the kernel lets go of it when the process ends, however it ends."""

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
    """The pid of the supervisor that runs on this data folder, or None when there is none."""
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
