"""Finds a request's client address and scheme behind proxies. `X-Forwarded-*` counts only from trusted proxies."""

import ipaddress
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import Scope

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

UNKNOWN = "unknown"


def parse_networks(text: str) -> tuple[Network, ...]:
    """Addresses and networks separated by commas. Raises ValueError."""
    return tuple(ipaddress.ip_network(part.strip(), strict=False) for part in text.split(",") if part.strip())


def client_address(request: HTTPConnection) -> str:
    """The client's IP address. The application's state holds the networks of TRUSTED_PROXIES as `trusted_proxies`."""
    trusted: Sequence[Network] = request.app.state.trusted_proxies
    peer = request.client.host if request.client else ""
    return address_behind_proxies(peer, request.headers.getlist("x-forwarded-for"), trusted)


def came_by_https(scope: Scope, trusted: Sequence[Network]) -> bool:
    """Whether the client used HTTPS: to this process, or to a trusted proxy that says so in `X-Forwarded-Proto`."""
    if scope["scheme"] == "https":
        return True
    if not trusted or not scope.get("client"):
        return False
    peer = _parsed(scope["client"][0])
    if peer is None or not any(peer in network for network in trusted):
        return False
    return Headers(scope=scope).get("x-forwarded-proto", "").strip().lower() == "https"


def address_behind_proxies(peer: str, forwarded_for: Sequence[str], trusted: Sequence[Network]) -> str:
    """The last address on the request's way that is not a trusted proxy; UNKNOWN when the peer has no IP address.

    The way is read backwards: from the peer through `X-Forwarded-For`, each entry written by the hop after it.
    """
    address = _parsed(peer)
    if address is None:
        return UNKNOWN
    hops = [hop for header in forwarded_for for hop in header.split(",")]
    while hops and any(address in network for network in trusted):
        previous = _parsed(hops.pop())
        if previous is None:
            break
        address = previous
    return str(address)


def _parsed(text: str) -> Address | None:
    """An IP address with or without a port."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
