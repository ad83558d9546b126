"""Chooses free TCP ports on this machine and checks whether a port is free."""

import random
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

HOST = "127.0.0.1"
_LOW, _HIGH = 20000, 32000
_LEAST_RANGE = 1000
_ATTEMPTS = 500


def choose_ports(names: Sequence[str]) -> dict[str, int]:
    """Returns a different free port for each name. Raises OSError when none is left.

    The ports lie below the range from which the kernel picks the local ports of outgoing connections. Otherwise such a
    connection could take the port of a process that has just died, and its successor could not listen there.
    """
    low, high = _range_below_outgoing()
    with ExitStack() as held:
        return {name: _hold_free_port(held, low, high) for name in names}


def free_port() -> int:
    """Returns one free port."""
    return choose_ports(["port"])["port"]


def port_is_free(host: str, port: int) -> bool:
    """Whether a server could listen on this address now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def _hold_free_port(held: ExitStack, low: int, high: int) -> int:
    for _ in range(_ATTEMPTS):
        candidate = random.randint(low, high)  # noqa: S311 - spreads stacks that start together; not a secret
        probe = socket.socket()
        try:
            probe.bind((HOST, candidate))
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
    return (_LOW, min(_HIGH, first - 1)) if first > _LOW + _LEAST_RANGE else (_LOW, _HIGH)
