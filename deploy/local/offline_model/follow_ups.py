"""Reading a follow-up: which change it wants to the earlier answer, or to what it wants the earlier request moved."""

import re
from dataclasses import dataclass, field

from deploy.local.offline_model.languages import Language
from deploy.local.offline_model.prompt_parts import without_polite_words
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
    text = without_polite_words(text.strip(), language)
    transfer = language.pattern["transfer"].fullmatch(text.rstrip(" ?.!"))
    if transfer and len(text.split()) <= _CLAUSE_WORDS:
        target = next((group for group in transfer.groups() if group), "").strip(" ?.!")
        if target and not _one_change(target, language, FollowUp()):
            follow_up.transfer = target
            return follow_up
    for sentence in re.split(r"(?<=[.!?])\s+", text):
        clauses = _clauses(sentence, language)
        understood = FollowUp()
        if all(_one_change(clause, language, understood) for clause in clauses):
            follow_up.changes += [change for change in understood.changes if change not in follow_up.changes]
            follow_up.audience = understood.audience or follow_up.audience
            follow_up.language = understood.language or follow_up.language
        elif sentence.strip():
            follow_up.verbatim.append(sentence.strip())
    return follow_up


def _clauses(sentence: str, language: Language) -> list[str]:
    parts = [piece for clause in split_clauses(sentence) for piece in language.pattern["clause_break"].split(clause)]
    return [part.strip(" .!?,") for part in parts if part and part.strip(" .!?,")]


def _one_change(clause: str, language: Language, into: FollowUp) -> bool:
    """Whether the clause is nothing but changes that are known; they are added to `into`."""
    if PLACEHOLDER.search(clause):
        return False
    rest = clause
    found = False
    named = language.pattern["in_language"].search(rest)
    if named:
        into.language = language.first_kind("language_words", named.group(0))
        found = into.language is not None
        rest = rest.replace(named.group(0), " ", 1)
    audience = language.pattern["audience"].search(rest)
    if audience:
        into.audience = audience.group(0).strip()
        found = True
        rest = rest.replace(audience.group(0), " ", 1)
    for kind, pattern in language.table["changes"].items():
        match = pattern.search(rest)
        if match:
            into.changes += [] if kind in into.changes else [kind]
            found = True
            rest = rest.replace(match.group(0), " ", 1)
    rest = language.pattern["leftover"].sub(" ", rest)
    return found and not re.search(r"\w", rest)
