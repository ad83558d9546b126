"""Where a request comes from, as far as that can be believed."""

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
    """The client's IP address; `X-Forwarded-For` counts only as far as proxies of TRUSTED_PROXIES have written it."""
    trusted: Sequence[Network] = request.app.state.trusted_proxies
    return believed_address(
        request.client.host if request.client else "", request.headers.getlist("x-forwarded-for"), trusted
    )


def came_by_https(scope: Scope, trusted: Sequence[Network]) -> bool:
    """Whether the client used HTTPS: to this process, or to a proxy of `trusted` that says so."""
    if scope["scheme"] == "https":
        return True
    if not trusted or not scope.get("client"):
        return False
    peer = _parsed(scope["client"][0])
    if peer is None or not any(peer in network for network in trusted):
        return False
    return Headers(scope=scope).get("x-forwarded-proto", "").strip().lower() == "https"


def believed_address(peer: str, forwarded_for: Sequence[str], trusted: Sequence[Network]) -> str:
    """The address nearest to us that is not a trusted proxy's, from the peer on through `X-Forwarded-For` backwards."""
    believed = _parsed(peer)
    if believed is None:
        return UNKNOWN
    hops = [hop for header in forwarded_for for hop in header.split(",")]
    while hops and any(believed in network for network in trusted):
        further = _parsed(hops.pop())
        if further is None:
            break
        believed = further
    return str(believed)


def _parsed(text: str) -> Address | None:
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
