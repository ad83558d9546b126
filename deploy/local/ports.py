"""Ports of the local stack: chosen once at its start and kept, so that a replaced process is found where it was."""

import random
import socket
from contextlib import ExitStack
from pathlib import Path

_LOW, _HIGH = 20000, 32000
_TRIES = 500


def choose_ports(names: tuple[str, ...]) -> dict[str, int]:
    """A free port for each name.

    They lie below the range from which the kernel serves outgoing connections: otherwise such a connection could take
    the port of a process that has just died, and its successor could not listen.
    """
    low, high = _range_below_outgoing()
    chosen: dict[str, int] = {}
    with ExitStack() as held:
        for name in names:
            chosen[name] = _free_port(held, low, high)
    return chosen


def port_is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def _free_port(held: ExitStack, low: int, high: int) -> int:
    for _ in range(_TRIES):
        candidate = random.randint(low, high)  # noqa: S311 - spreads stacks that start at once, nothing secret
        probe = socket.socket()
        try:
            probe.bind(("127.0.0.1", candidate))
        except OSError:
            probe.close()
            continue
        held.enter_context(probe)
        return candidate
    raise OSError(f"no free port between {low} and {high}")


def _range_below_outgoing() -> tuple[int, int]:
    try:
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError):
        return _LOW, _HIGH
    return (_LOW, min(_HIGH, first - 1)) if first > _LOW + 1000 else (_LOW, _HIGH)
