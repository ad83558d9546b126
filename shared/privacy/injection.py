"""Finds prompt injection, instructions to a model in text that should only be data, and removes it.

`injection.yar` holds the rules. Text is normalized before it is scanned, so that look-alike letters, invisible
characters, Base64 and spelled-out words do not hide an instruction.
"""

import base64
import binascii
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yara_x

_EXCERPT_LENGTH = 120
_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’»)\]]*(?=\s|$)|[。！？｡]+[」』”）]*|\n+|[।؟]+")
# The prefix of the rules that do not apply after a negation: `never ignore the previous instructions`.
_NEGATABLE = "override"
_NEGATED = re.compile(
    r"(?:\bdo not|\bdon['’]?t|\bnever|\bmust not|\bshould not|\bshouldn['’]?t|\bcannot|\bcan['’]?t|\bnot to|\bnot"
    r"|\bwithout|\bne pas|\bn['’]|\bnicht|\bno se debe|\bnunca|\bnão|\bnon|đừng|không được"
    r"|不要|不能|不得|不可|请勿|не|нельзя)\s*$"
)
# A character with its combining marks. They are normalized together, so that `e` and an acute accent become `é`.
_CLUSTER = re.compile(r"[^\u0300-\u036f\u3099\u309a][\u0300-\u036f\u3099\u309a]*|[\u0300-\u036f\u3099\u309a]+")
# Cyrillic and Greek letters that look like Latin ones.
_LOOK_ALIKES = str.maketrans(
    "аеорсухіјѕԁԛԝвнкмтгпьзҽөӏαβεικνορτυχγωηℓ",
    "aeopcyxijsdqwbhkmtrnb3eolabeiknoptuxywnl",
)
_HAS_LOOK_ALIKE = re.compile(r"[\u0370-\u03ff\u0400-\u052f]")
_BASE64_RUN = re.compile(r"(?<![A-Za-z0-9+/_=-])[A-Za-z0-9+/_-]{24,}={0,2}(?![A-Za-z0-9+/_=-])")
_MAX_BASE64_LENGTH = 20_000
_SPELLED_OUT = re.compile(r"(?<![^\W_])(?:[^\W\d_][ .*_-]){5,}[^\W\d_](?![^\W_])")
_SUSPECT_WORDS = re.compile(r"ignore|disregard|forget|override|bypass|instruction|systemprompt|jailbreak")


@dataclass(frozen=True)
class InjectionFinding:
    """`rule` matched `text[start:end]` of the scanned text."""

    rule: str
    start: int
    end: int
    excerpt: str


def scan(text: str) -> list[InjectionFinding]:
    """Returns the passages of `text` that try to instruct a model, in order. Findings may overlap."""
    plain = _normalized(text)
    found = set(_matches(plain))
    latin = _without_look_alikes(plain)
    if latin is not None:
        found.update(_matches(latin))
    for start, end, decoded in _decoded_runs(text):
        found.update((f"{rule}_base64", start, end) for rule, _, _ in _matches(_normalized(decoded)))
    for start, end, joined in _spelled_out_runs(text):
        if _SUSPECT_WORDS.search(joined.lower()):
            found.add(("spelled_out", start, end))
    return [
        InjectionFinding(rule, start, end, text[start : min(end, start + _EXCERPT_LENGTH)])
        for rule, start, end in _without_nested(found)
    ]


def remove(text: str) -> tuple[str, list[InjectionFinding]]:
    """Returns `text` without the sentences that contain findings, and the findings. Other text is not changed."""
    findings = scan(text)
    if not findings:
        return text, []
    pieces, position = [], 0
    for start, end in _sentences_around(text, findings):
        pieces.append(text[position:start])
        position = end
    pieces.append(text[position:])
    return "".join(pieces).strip(), findings


def _sentences_around(text: str, findings: list[InjectionFinding]) -> list[tuple[int, int]]:
    """Returns the sentences that contain findings; adjacent ones are merged."""
    bounds = [0, *(match.end() for match in _SENTENCE_END.finditer(text)), len(text)]
    merged: list[tuple[int, int]] = []
    for finding in findings:
        start = max(bound for bound in bounds if bound <= finding.start)
        end = min(bound for bound in bounds if bound >= finding.end)
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _without_nested(found: set[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    """Sorts matches and drops those that lie within another match of the same rule."""
    kept: list[tuple[str, int, int]] = []
    furthest: dict[str, int] = {}
    for rule, start, end in sorted(found, key=lambda item: (item[1], -item[2], item[0])):
        if end > furthest.get(rule, -1):
            kept.append((rule, start, end))
            furthest[rule] = end
    return kept


@dataclass(frozen=True)
class _NormalizedText:
    """Text in the form that is scanned, with a mapping to the original.

    `starts[i]` is the position in the original of the piece that begins at `offsets[i]` in `text`. Both lists are empty
    if positions are equal.
    """

    text: str
    offsets: list[int]
    starts: list[int]
    original_length: int

    def original_span(self, start: int, end: int) -> tuple[int, int]:
        """Returns the part of the original that `text[start:end]` comes from."""
        if not self.offsets:
            return start, end
        first = bisect_right(self.offsets, start) - 1
        following = bisect_right(self.offsets, max(start, end - 1))
        return self.starts[first], self.starts[following] if following < len(self.starts) else self.original_length


def _matches(text: _NormalizedText) -> Iterator[tuple[str, int, int]]:
    """Yields the rules that match, each with start and end in the original text."""
    encoded = text.text.encode("utf-8", "replace")
    results = yara_x.Scanner(_rules()).scan(encoded)
    hits = [
        (rule.identifier, match.offset, match.offset + match.length)
        for rule in results.matching_rules
        for pattern in rule.patterns
        for match in pattern.matches
    ]
    if not hits:
        return
    position_of = _character_positions(text.text, encoded, {edge for _, start, end in hits for edge in (start, end)})
    for rule, first, last in hits:
        start, end = position_of[first], position_of[last]
        if rule.startswith(_NEGATABLE) and _NEGATED.search(text.text, max(0, start - 20), start):
            continue
        yield (rule, *text.original_span(start, end))


@cache
def _rules() -> yara_x.Rules:
    return yara_x.compile(Path(__file__).with_suffix(".yar").read_text(encoding="utf-8"))


def _character_positions(text: str, encoded: bytes, edges: set[int]) -> dict[int, int]:
    """Maps byte offsets in the encoded text to character offsets."""
    if len(text) == len(encoded):
        return {edge: edge for edge in edges}
    positions, last_edge, count = {}, 0, 0
    for edge in sorted(edges):
        count += len(encoded[last_edge:edge].decode("utf-8", "ignore"))
        positions[edge], last_edge = count, edge
    return positions


def _normalized(original: str) -> _NormalizedText:
    """Returns the text in lower case and NFKC, without invisible characters, and with tag characters as letters."""
    if original.isascii():
        return _NormalizedText(original.lower(), [], [], len(original))
    pieces, offsets, starts, length = [], [], [], 0
    for match in _CLUSTER.finditer(original):
        cluster = match[0]
        piece = cluster.lower() if cluster.isascii() else _visible(cluster)
        if piece:
            pieces.append(piece)
            offsets.append(length)
            starts.append(match.start())
            length += len(piece)
    return _NormalizedText("".join(pieces), offsets, starts, len(original))


def _visible(cluster: str) -> str:
    code = ord(cluster[0])
    if 0xE0020 <= code <= 0xE007E:  # tag characters, which are invisible copies of ASCII
        return chr(code - 0xE0000).lower()
    kept = "".join(c for c in cluster if unicodedata.category(c) not in ("Cf", "Cn", "Co") and not _is_selector(c))
    return unicodedata.normalize("NFKC", kept).lower()


def _is_selector(character: str) -> bool:
    """Whether the character is a variation selector, a joiner or a filler, which are invisible."""
    return (
        "\ufe00" <= character <= "\ufe0f"
        or "\U000e0100" <= character <= "\U000e01ef"
        or character in "\u034f\u115f\u1160\u3164"
    )


def _without_look_alikes(text: _NormalizedText) -> _NormalizedText | None:
    """Returns the text with look-alike letters as Latin ones, or None if it has no Cyrillic or Greek letters."""
    if not _HAS_LOOK_ALIKE.search(text.text):
        return None
    return _NormalizedText(text.text.translate(_LOOK_ALIKES), text.offsets, text.starts, text.original_length)


def _decoded_runs(original: str) -> Iterator[tuple[int, int, str]]:
    """Yields start and end of Base64 that decodes to readable text, and that text."""
    for match in _BASE64_RUN.finditer(original):
        run = match[0].rstrip("=").replace("-", "+").replace("_", "/")
        if len(run) > _MAX_BASE64_LENGTH or len(run) % 4 == 1:
            continue
        try:
            text = base64.b64decode(run + "=" * (-len(run) % 4)).decode("utf-8")
        except (binascii.Error, UnicodeDecodeError):
            continue
        if sum(character.isprintable() or character.isspace() for character in text) >= 0.95 * len(text):
            yield match.start(), match.end(), text


def _spelled_out_runs(original: str) -> Iterator[tuple[int, int, str]]:
    """Yields start and end of words spelled out as `i g n o r e`, and the joined letters."""
    for match in _SPELLED_OUT.finditer(original):
        yield match.start(), match.end(), re.sub(r"[ .*_-]", "", match[0])
