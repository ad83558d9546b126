"""Splits a prompt into task, context, constraints and material, and extracts goal, audience, length and format."""

import re
from dataclasses import dataclass, field

from deploy.local.offline_model.languages import CODES, Language, language_of
from deploy.local.offline_model.passages import looks_like_code, read_passages, without_polite_words
from deploy.local.offline_model.text_pieces import LIST_ITEM, PLACEHOLDER, QUOTATION, split_clauses

_GOALS_ABOUT_SOMETHING = ("explain", "compare", "summarize", "translate", "analyze", "improve")
_LAYOUTS = ("table", "bullets", "steps", "json", "csv")
# Words before a form that make it the form of the answer: "as a table", "in 3 Stichpunkten".
_AS_WORDS = (
    "as|in|into|with|using|use|give me|make|create|als|mit|en|sous forme d[e']|avec|como|con|em|com|come|in forma di|"
    "met|dạng|bằng|thành|theo|kèm|format|formato|formaat|ausgabe|output"
)
_AS = re.compile(rf"(?<![^\W_])(?:{_AS_WORDS}|\d+):?(?: [^\W_]+){{0,2}} *$", re.IGNORECASE)
_AS_WITHIN = re.compile(rf"(?:{_AS_WORDS})\b", re.IGNORECASE)


@dataclass
class PromptParts:
    """The parts of a prompt.

    Each piece, without polite words, is in exactly one of `task`, `context`, `constraints` and `blocks`, unchanged. The
    other fields are extracted from the text; one that contains a placeholder stays empty, so that no placeholder is
    duplicated.
    """

    task: list[str] = field(default_factory=list)
    context: list[str] = field(default_factory=list)
    constraints: list[str] = field(default_factory=list)
    blocks: list[str] = field(default_factory=list)
    goal: str | None = None
    domain: str | None = None
    format: str | None = None
    audience: str | None = None
    length: str | None = None
    tone: str | None = None
    answer_language: str | None = None
    quotes: bool = False


def split_prompt(prompt: str, language: Language | None) -> PromptParts:
    """Returns the parts of a prompt. Without rules for its language, the whole prompt is the task."""
    parts = PromptParts(quotes=QUOTATION.search(prompt) is not None)
    if language is None:
        parts.task = [prompt.strip()]
        return parts
    group = parts.task
    in_list = False
    for passage in read_passages(prompt, language):
        text = passage.text
        if passage.kind == "material":
            parts.blocks.append(text)
        elif passage.kind == "background":
            parts.context.append(text)
        elif LIST_ITEM.match(text) and in_list:
            group[-1] += "\n" + text
        else:
            text = text if LIST_ITEM.match(text) else without_polite_words(text, language)
            group = _group_for(text, parts, language)
            group += _limits_of(text, language) if group is parts.constraints else [text]
        in_list = passage.kind == "sentence" and (text.endswith(":") or LIST_ITEM.match(text) is not None)
    if not parts.task:
        source = parts.context or parts.constraints
        if source:
            parts.task.append(source.pop(0))
    _move_trailing_limits(parts, language)
    said = "\n".join([*parts.task, *parts.context, *parts.constraints])
    _read_clues(PLACEHOLDER.sub(" ", QUOTATION.sub(" ", said)), parts, language)
    return parts


def _group_for(piece: str, parts: PromptParts, language: Language) -> list[str]:
    bare = PLACEHOLDER.sub(" ", piece)
    starts = [language.pattern["order"], *language.table["goals"].values()]
    goal = any(pattern.match(bare) for pattern in starts)
    limits = language.pattern["constraint"].search(bare)
    statement = language.pattern["statement"].match(bare)
    if piece.rstrip().endswith(("?", "？")) or (goal and not parts.task):
        return parts.task
    if statement and not (limits and re.search(r"\d", bare)):
        return parts.context
    if limits and (parts.task or limits.start() == 0):
        return parts.constraints
    if goal or not parts.task:
        return parts.task
    if any(pattern.search(bare) for pattern in language.table["goals"].values()):
        return parts.task
    return parts.context


def _limits_of(sentence: str, language: Language) -> list[str]:
    """Returns the clauses of a sentence in which every clause is a constraint, or else the sentence."""
    clauses = split_clauses(sentence)
    if len(clauses) > 1 and all(_only_limits(clause, language) for clause in clauses):
        return [clause.rstrip(".") for clause in clauses]
    return [sentence]


def _move_trailing_limits(parts: PromptParts, language: Language) -> None:
    """Moves clauses at the end of task sentences that only limit the task to the constraints."""
    for index, sentence in enumerate(parts.task):
        if "\n" in sentence or sentence.rstrip().endswith(("?", ":")):
            continue
        clauses = split_clauses(sentence)
        moved: list[str] = []
        while len(clauses) > 1 and _only_limits(clauses[-1], language):
            moved.insert(0, clauses.pop().rstrip("."))
        if moved:
            start = sentence.rfind(moved[0])
            kept = sentence[:start].rstrip(" ,;–—-，；、")
            parts.task[index] = kept
            parts.constraints.extend(moved)


def _only_limits(clause: str, language: Language) -> bool:
    starts = ("constraint", "length", "tone", "in_language")
    connective = language.pattern["clause_break"].match(clause)
    for bare in (clause, clause[connective.end() :].strip() if connective else clause):
        bare = without_polite_words(bare, language)
        if any(language.pattern[name].match(bare) for name in starts):
            return len(bare.split()) <= 14
        tone = language.pattern["tone"].search(bare)
        if tone and len(bare.split()) <= 5:
            return True
    return False


def _read_clues(text: str, parts: PromptParts, language: Language) -> None:
    parts.goal = language.first_kind("goals", text)
    parts.domain = "translate" if parts.goal == "translate" else language.main_kind("domains", text)
    wanted = _without_negated(text, language)
    parts.format = _format_asked_for(wanted, parts, language)
    parts.audience = _extracted(language.pattern["audience"], wanted)
    parts.length = _extracted(language.pattern["length"], text)
    parts.tone = _extracted(language.pattern["tone"], wanted)
    if any(language.pattern[name].fullmatch(text.strip(" .!?,")) for name in ("greeting", "thanks")):
        parts.goal, parts.domain, parts.format = "talk", "talk", None
    elif parts.domain == "code" and parts.goal in ("explain", "compare", "summarize") and not parts.blocks:
        parts.domain = "tech"
    if any(looks_like_code(block) for block in parts.blocks) and parts.domain in (None, "code"):
        parts.domain, parts.format = "code", parts.format or "code"
    if parts.domain == "code" and parts.goal == "improve":
        parts.format = parts.format or "code"
    parts.answer_language = language.answer_language(wanted) or _answer_language_in_other_words(wanted, language)


def _answer_language_in_other_words(text: str, language: Language) -> str | None:
    """Returns the answer's language where another language names it: "a poem about the sea, auf Deutsch bitte"."""
    others = (other for code in CODES if code != language.code and (other := language_of(code)))
    return next((named for other in others if (named := other.answer_language(_without_negated(text, other)))), None)


def _without_negated(text: str, language: Language) -> str:
    """Removes the negated parts of the text: from a negation to the end of its clause or to a word such as "but"."""
    clauses = re.split(r"(?<=[.!?;,\n])", text)
    return "".join(_affirmed(clause, language) for clause in clauses)


def _affirmed(clause: str, language: Language) -> str:
    negated = language.pattern["negation"].search(clause)
    if negated is None:
        return clause
    rest = clause[negated.end() :]
    # "Tabellen bitte nicht": a negation at the end negates the words before it.
    before = clause[: negated.start()] if rest.strip(" .!?;,\n") else ""
    contrast = language.pattern["contrast"].search(rest)
    return f"{before} {_affirmed(rest[contrast.end() :], language) if contrast else ''} "


def _format_asked_for(text: str, parts: PromptParts, language: Language) -> str | None:
    """Returns the requested format.

    Goals about a subject often mention a format as that subject: there, only an explicit layout counts.
    """
    if parts.goal not in _GOALS_ABOUT_SOMETHING:
        return language.first_kind("formats", text)
    found = [
        (match.start(), kind)
        for kind, pattern in language.table["formats"].items()
        if kind in _LAYOUTS
        for match in pattern.finditer(text)
        if kind == "steps" or _AS.search(text[: match.start()]) or _AS_WITHIN.match(match.group(0))
    ]
    return min(found)[1] if found else None


def _extracted(pattern: re.Pattern[str], text: str) -> str | None:
    match = pattern.search(text)
    if match is None:
        return None
    picked = next((group for group in match.groups() if group), match.group(0)).strip()
    return None if PLACEHOLDER.search(picked) else picked
