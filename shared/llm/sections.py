"""Delimits the parts of a user message, with markers that cannot occur in the parts themselves.

[[prompt 3fa9c1d2]]
whatever a user wrote
[[/prompt 3fa9c1d2]]
"""

import hashlib
import re
from collections.abc import Mapping

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_OPENING = re.compile(r"\[\[([a-z][a-z0-9_]*) ([0-9a-f]{8})\]\]\n")


def render_sections(sections: Mapping[str, str]) -> str:
    """The sections as one message, in their order. Raises ValueError for a name that is not snake_case.

    The boundary is a hash of the contents and occurs in none of them.
    """
    for name in sections:
        if not _NAME.fullmatch(name):
            raise ValueError(f"not a section name: {name!r}")
    boundary = _boundary(sections)
    return "\n".join(f"[[{name} {boundary}]]\n{text}\n[[/{name} {boundary}]]" for name, text in sections.items())


def parse_sections(text: str) -> dict[str, str]:
    """The sections of a rendered message, unchanged; empty when `text` is not a rendered message."""
    first = _OPENING.match(text)
    if first is None:
        return {}
    boundary = first.group(2)
    section = re.compile(
        rf"^\[\[(?P<name>[a-z][a-z0-9_]*) {boundary}\]\]\n(?P<text>.*?)\n\[\[/(?P=name) {boundary}\]\]$",
        re.DOTALL | re.MULTILINE,
    )
    return {match["name"]: match["text"] for match in section.finditer(text)}


def _boundary(sections: Mapping[str, str]) -> str:
    seed = "\x1f".join(f"{name}\x1e{text}" for name, text in sections.items()).encode("utf-8", "surrogatepass")
    while True:
        seed = hashlib.sha256(seed).digest()
        boundary = seed.hex()[:8]
        if not any(boundary in text for text in sections.values()):
            return boundary
