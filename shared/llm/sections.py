"""Data in a user message, delimited so that nothing in the data can pass for the delimiter.

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
    """The sections in their order as one message. Names are snake_case; ValueError for any other.

    The boundary is derived from the contents and occurs in none of them.
    """
    for name in sections:
        if not _NAME.fullmatch(name):
            raise ValueError(f"not a section name: {name!r}")
    boundary = _boundary(sections)
    return "\n".join(f"[[{name} {boundary}]]\n{text}\n[[/{name} {boundary}]]" for name, text in sections.items())


def parse_sections(text: str) -> dict[str, str]:
    """The sections of a rendered message, each exactly as it went in; empty when `text` is none."""
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
