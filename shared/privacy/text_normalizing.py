"""Text as an injection scanner must see it, with the way back to positions in the original."""

import base64
import binascii
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

# A character with the marks that combine with it: normalized together, or `e` + acute would not become `é`.
_CLUSTER = re.compile(r"[^\u0300-\u036f\u3099\u309a][\u0300-\u036f\u3099\u309a]*|[\u0300-\u036f\u3099\u309a]+")
# Letters that look like Latin ones.
_LOOK_ALIKES = str.maketrans(
    "аеорсухіјѕԁԛԝвнкмтгпьзҽөӏαβεικνορτυχγωηℓ",
    "aeopcyxijsdqwbhkmtrnb3eolabeiknoptuxywnl",
)
_HAS_LOOK_ALIKE = re.compile(r"[\u0370-\u03ff\u0400-\u052f]")
_BASE64_RUN = re.compile(r"(?<![A-Za-z0-9+/_=-])[A-Za-z0-9+/_-]{24,}={0,2}(?![A-Za-z0-9+/_=-])")
_SPELLED_OUT = re.compile(r"(?<![^\W_])(?:[^\W\d_][ .*_-]){5,}[^\W\d_](?![^\W_])")
_LARGEST_BASE64 = 20_000


@dataclass(frozen=True)
class NormalizedText:
    """`text` for the scanner. `starts[i]` is where the original of the piece that begins at `offsets[i]` begins."""

    text: str
    offsets: list[int]
    starts: list[int]
    original_length: int

    def original_span(self, start: int, end: int) -> tuple[int, int]:
        """The part of the original that `text[start:end]` comes from."""
        if not self.offsets:
            return start, end
        first = bisect_right(self.offsets, start) - 1
        following = bisect_right(self.offsets, max(start, end - 1))
        return self.starts[first], self.starts[following] if following < len(self.starts) else self.original_length


def normalized(original: str) -> NormalizedText:
    """Lower case, NFKC, without invisible characters; letters hidden in tag characters made visible."""
    if original.isascii():
        return NormalizedText(original.lower(), [], [], len(original))
    pieces, offsets, starts, length = [], [], [], 0
    for match in _CLUSTER.finditer(original):
        cluster = match[0]
        piece = cluster.lower() if cluster.isascii() else _visible(cluster)
        if piece:
            pieces.append(piece)
            offsets.append(length)
            starts.append(match.start())
            length += len(piece)
    return NormalizedText("".join(pieces), offsets, starts, len(original))


def _visible(cluster: str) -> str:
    code = ord(cluster[0])
    if 0xE0020 <= code <= 0xE007E:
        return chr(code - 0xE0000).lower()
    kept = "".join(c for c in cluster if unicodedata.category(c) not in ("Cf", "Cn", "Co") and not _is_selector(c))
    return unicodedata.normalize("NFKC", kept).lower()


def _is_selector(character: str) -> bool:
    return (
        "\ufe00" <= character <= "\ufe0f"
        or "\U000e0100" <= character <= "\U000e01ef"
        or character in "\u034f\u115f\u1160\u3164"
    )


def without_look_alikes(text: NormalizedText) -> NormalizedText | None:
    """The text with Cyrillic and Greek look-alikes as Latin letters; None when it has no such letters."""
    if not _HAS_LOOK_ALIKE.search(text.text):
        return None
    return NormalizedText(text.text.translate(_LOOK_ALIKES), text.offsets, text.starts, text.original_length)


def decoded_runs(original: str) -> Iterator[tuple[int, int, str]]:
    """Base64 that holds readable text: start and end in the original, and what it says."""
    for match in _BASE64_RUN.finditer(original):
        run = match[0].rstrip("=").replace("-", "+").replace("_", "/")
        if len(run) > _LARGEST_BASE64 or len(run) % 4 == 1:
            continue
        try:
            text = base64.b64decode(run + "=" * (-len(run) % 4)).decode("utf-8")
        except (binascii.Error, UnicodeDecodeError):
            continue
        if sum(character.isprintable() or character.isspace() for character in text) >= 0.95 * len(text):
            yield match.start(), match.end(), text


def spelled_out_runs(original: str) -> Iterator[tuple[int, int, str]]:
    """Words spelled out as `i g n o r e`: start and end in the original, and the letters joined."""
    for match in _SPELLED_OUT.finditer(original):
        yield match.start(), match.end(), re.sub(r"[ .*_-]", "", match[0])
