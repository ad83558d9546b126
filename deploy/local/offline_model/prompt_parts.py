"""Taking a prompt apart: what is asked, what is told, what is limited, for whom and in what form."""

import re
from dataclasses import dataclass, field

from deploy.local.offline_model.languages import Language
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
    """Each piece of the prompt, without its pleases and greetings, stands verbatim in exactly one of `task`,
    `context`, `constraints` and `blocks`.

    The rest are clues read from it; a clue that holds a placeholder is left out, so that none is ever doubled.
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


def take_apart(prompt: str, language: Language | None) -> PromptParts:
    """The parts of a prompt. Without rules for its language the whole prompt is the task."""
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
    told = language.pattern["statement"].match(bare)
    if piece.rstrip().endswith(("?", "？")) or (goal and not parts.task):
        return parts.task
    if told and not (limits and re.search(r"\d", bare)):
        return parts.context
    if limits and (parts.task or limits.start() == 0):
        return parts.constraints
    if goal or not parts.task:
        return parts.task
    if any(pattern.search(bare) for pattern in language.table["goals"].values()):
        return parts.task
    return parts.context


def _limits_of(sentence: str, language: Language) -> list[str]:
    """The clauses of a sentence that each limit something, else the sentence."""
    clauses = split_clauses(sentence)
    if len(clauses) > 1 and all(_only_limits(clause, language) for clause in clauses):
        return [clause.rstrip(".") for clause in clauses]
    return [sentence]


def _move_trailing_limits(parts: PromptParts, language: Language) -> None:
    """Clauses at the end of what is asked that only limit it become constraints of their own."""
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
    parts.audience = _picked(language.pattern["audience"], wanted)
    parts.length = _picked(language.pattern["length"], text)
    parts.tone = _picked(language.pattern["tone"], wanted)
    if any(language.pattern[name].fullmatch(text.strip(" .!?,")) for name in ("greeting", "thanks")):
        parts.goal, parts.domain, parts.format = "talk", "talk", None
    elif parts.domain == "code" and parts.goal in ("explain", "compare", "summarize") and not parts.blocks:
        parts.domain = "tech"
    if any(looks_like_code(block) for block in parts.blocks) and parts.domain in (None, "code"):
        parts.domain, parts.format = "code", parts.format or "code"
    if parts.domain == "code" and parts.goal == "improve":
        parts.format = parts.format or "code"
    named = language.pattern["in_language"].search(wanted)
    if named:
        parts.answer_language = language.first_kind("language_words", named.group(0))


def _without_negated(text: str, language: Language) -> str:
    """The text without what its negations take back: from each to the end of its clause, or to a "but"."""
    clauses = re.split(r"(?<=[.!?;,\n])", text)
    return "".join(_affirmed(clause, language) for clause in clauses)


def _affirmed(clause: str, language: Language) -> str:
    negated = language.pattern["negation"].search(clause)
    if negated is None:
        return clause
    rest = clause[negated.end() :]
    # "Tabellen bitte nicht": a negation at the end takes back what stands before it.
    before = clause[: negated.start()] if rest.strip(" .!?;,\n") else ""
    contrast = language.pattern["contrast"].search(rest)
    return f"{before} {_affirmed(rest[contrast.end() :], language) if contrast else ''} "


def _format_asked_for(text: str, parts: PromptParts, language: Language) -> str | None:
    """The form that is asked for. What is explained, compared or worked on often has the name of a form itself."""
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


def _picked(pattern: re.Pattern[str], text: str) -> str | None:
    match = pattern.search(text)
    if match is None:
        return None
    picked = next((group for group in match.groups() if group), match.group(0)).strip()
    return None if PLACEHOLDER.search(picked) else picked
