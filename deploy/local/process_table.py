"""What the kernel says about a process, and whether it answers HTTP."""

import asyncio
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


_TIMEOUT_SECONDS = 3.0
_LONGEST_ANSWER_BYTES = 64 * 1024


class NotReady(ConnectionError):
    """The server answered, but not with 200. `detail` is the beginning of what it said."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(f"HTTP {status}: {detail}")
        self.status, self.detail = status, detail


async def http_ready(host: str, port: int, path: str = "/health/ready") -> None:
    """Raises OSError (NotReady among them) or TimeoutError until a GET of `path` is answered with 200."""
    status, body = await http_get(host, port, path)
    if status != 200:
        raise NotReady(status, body[:500])


async def http_get(host: str, port: int, path: str) -> tuple[int, str]:
    """Status and body of a GET. Raises OSError or TimeoutError."""
    request = f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\nAccept: application/json\r\n\r\n"
    async with asyncio.timeout(_TIMEOUT_SECONDS):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.write(request.encode())
            answer = bytearray()
            while len(answer) < _LONGEST_ANSWER_BYTES and (piece := await reader.read(8192)):
                answer += piece
        finally:
            writer.close()
    head, _, body = bytes(answer).partition(b"\r\n\r\n")
    try:
        status = int(head.split(b" ", 2)[1])
    except (IndexError, ValueError) as error:
        raise ConnectionError("not an HTTP answer") from error
    return status, body.decode(errors="replace")
