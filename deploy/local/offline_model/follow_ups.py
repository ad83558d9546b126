"""Reading a follow-up: which change it wants to the earlier answer, or to what it wants the earlier request moved."""

import re
from dataclasses import dataclass, field

from deploy.local.offline_model.languages import Language
from deploy.local.offline_model.passages import without_polite_words
from deploy.local.offline_model.text_pieces import PLACEHOLDER, split_clauses

_CLAUSE_WORDS = 9


@dataclass
class FollowUp:
    """`changes` are kinds of change that are fully understood; `verbatim` is what has to be said in its own words."""

    changes: list[str] = field(default_factory=list)
    audience: str | None = None
    language: str | None = None
    transfer: str | None = None
    verbatim: list[str] = field(default_factory=list)


def read_follow_up(text: str, language: Language) -> FollowUp:
    """The follow-up taken apart clause by clause."""
    follow_up = FollowUp()
    text = without_polite_words(text.strip().lstrip("¿¡"), language)
    transfer = language.pattern["transfer"].fullmatch(text.rstrip(" ?.!"))
    if transfer and len(text.split()) <= _CLAUSE_WORDS:
        target = next((group for group in transfer.groups() if group), "").strip(" ?.!")
        if target and _not_understood(target, language, FollowUp()):
            follow_up.transfer = target
            return follow_up
    for sentence in re.split(r"(?<=[.!?])\s+", text):
        clauses = _clauses(sentence, language)
        understood = FollowUp()
        rests = [_not_understood(clause, language, understood) for clause in clauses]
        if not any(rests) and (understood.changes or understood.audience or understood.language):
            follow_up.changes += [change for change in understood.changes if change not in follow_up.changes]
            follow_up.audience = understood.audience or follow_up.audience
            follow_up.language = understood.language or follow_up.language
        elif sentence.strip():
            follow_up.verbatim.append(sentence.strip())
    return follow_up


def _clauses(sentence: str, language: Language) -> list[str]:
    parts = [piece for clause in split_clauses(sentence) for piece in language.pattern["clause_break"].split(clause)]
    return [part.strip(" .!?,") for part in parts if part and part.strip(" .!?,")]


def _not_understood(clause: str, language: Language, into: FollowUp) -> str:
    """What is left of the clause without the changes that are known and filler words; they are added to `into`."""
    if PLACEHOLDER.search(clause):
        return clause
    rest = clause
    named = language.pattern["in_language"].search(rest)
    kind = language.first_kind("language_words", named.group(0)) if named else None
    if named and kind:
        into.language = kind
        rest = rest.replace(named.group(0), " ", 1)
    audience = language.pattern["audience"].search(rest)
    if audience:
        into.audience = audience.group(0).strip()
        rest = rest.replace(audience.group(0), " ", 1)
    for change, pattern in language.table["changes"].items():
        match = pattern.search(rest)
        if match:
            into.changes += [] if change in into.changes else [change]
            rest = rest.replace(match.group(0), " ", 1)
    for name in ("polite", "leftover"):
        rest = language.pattern[name].sub(" ", rest)
    return " ".join(re.findall(r"\w+", rest))
