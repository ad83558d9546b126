"""Finds instructions to a model in text that should only be data, and takes them out.

The rules (`injection.yar`) are multilingual. They run on the text after NFKC and without invisible characters, once
more with look-alike letters as Latin ones, and on what base64 in it says. They know what attacks usually say, not
every attack: they are one layer, beside telling the model which text is data.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yara_x

from shared.privacy.text_normalizing import (
    NormalizedText,
    decoded_runs,
    normalized,
    spelled_out_runs,
    without_look_alikes,
)

_EXCERPT_LENGTH = 120
_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’»)\]]*(?=\s|$)|[。！？｡]+[」』”）]*|\n+|[।؟]+")
# Right before an order, these turn it into its opposite: `never ignore the previous instructions`.
_NEGATED = re.compile(
    r"(?:\bdo not|\bdon['’]?t|\bnever|\bmust not|\bshould not|\bshouldn['’]?t|\bcannot|\bcan['’]?t|\bnot to|\bnot"
    r"|\bwithout|\bne pas|\bn['’]|\bnicht|\bno se debe|\bnunca|\bnão|\bnon|đừng|không được"
    r"|不要|不能|不得|不可|请勿|не|нельзя)\s*$"
)
_SPELLED_OUT = re.compile(r"ignore|disregard|forget|override|bypass|instruction|systemprompt|jailbreak")
_NEGATABLE = "override"


@dataclass(frozen=True)
class InjectionFinding:
    """`text[start:end]` is where `rule` matched, in the text as it was given."""

    rule: str
    start: int
    end: int
    excerpt: str


def scan(text: str) -> list[InjectionFinding]:
    """What in `text` tries to instruct a model, in order; findings may overlap."""
    plain = normalized(text)
    found = set(_matches(plain))
    folded = without_look_alikes(plain)
    if folded is not None:
        found.update(_matches(folded))
    for start, end, hidden in decoded_runs(text):
        found.update((f"{rule}_base64", start, end) for rule, _, _ in _matches(normalized(hidden)))
    for start, end, joined in spelled_out_runs(text):
        if _SPELLED_OUT.search(joined.lower()):
            found.add(("spelled_out", start, end))
    return [
        InjectionFinding(rule, start, end, text[start : min(end, start + _EXCERPT_LENGTH)])
        for rule, start, end in _without_nested(found)
    ]


def _without_nested(found: set[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    """In order, without those that lie within another of the same rule."""
    kept: list[tuple[str, int, int]] = []
    furthest: dict[str, int] = {}
    for rule, start, end in sorted(found, key=lambda item: (item[1], -item[2], item[0])):
        if end > furthest.get(rule, -1):
            kept.append((rule, start, end))
            furthest[rule] = end
    return kept


def remove(text: str) -> tuple[str, list[InjectionFinding]]:
    """`text` without the sentences that hold a finding, and the findings. Text without findings is unchanged."""
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
    """The sentences that findings stand in, merged where they touch."""
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


def _matches(text: NormalizedText) -> Iterator[tuple[str, int, int]]:
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


def _character_positions(text: str, encoded: bytes, edges: set[int]) -> dict[int, int]:
    """Byte offsets as character offsets."""
    if len(text) == len(encoded):
        return {edge: edge for edge in edges}
    positions, last_edge, count = {}, 0, 0
    for edge in sorted(edges):
        count += len(encoded[last_edge:edge].decode("utf-8", "ignore"))
        positions[edge], last_edge = count, edge
    return positions


@cache
def _rules() -> yara_x.Rules:
    return yara_x.compile(Path(__file__).with_suffix(".yar").read_text(encoding="utf-8"))
