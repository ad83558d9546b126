"""Loads the language data of the offline model: patterns to read prompts with, and phrases to write them with.

Each language with rules has one TOML file. Patterns are alternatives of a regular expression that match whole words in
any case; line breaks inside a pattern are ignored. Where a pattern has groups, the first one is the text that is
extracted.
"""

import re
import tomllib
from dataclasses import dataclass, fields
from functools import cache, cached_property
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent
CODES = tuple(sorted(path.stem for path in _FOLDER.glob("*.toml")))
NO_RULES = "There are no rules for the language of this prompt, so its words were left as they are."

_UNRULED = _FOLDER.parent / "unruled_languages.toml"

_PATTERN_TABLES = ("goals", "domains", "formats", "language_words", "changes")


def words_pattern(alternatives: str) -> re.Pattern[str]:
    """Compiles a pattern that matches any of the alternatives as whole words, in any case."""
    joined = alternatives.replace("\n", "")
    return re.compile(rf"(?<![^\W_])(?:{joined})(?![^\W_])", re.IGNORECASE)


@dataclass(frozen=True)
class Language:
    """The data of one language. Patterns are compiled on first use."""

    code: str
    stopwords: str
    # From this cosine on, two sentences count as related. It differs because WordLlama handles English best.
    meaning_floor: float

    # To read a prompt.
    goals: dict[str, str]
    domains: dict[str, str]
    audience: str
    length: str
    constraint: str
    statement: str
    tone: str
    formats: dict[str, str]
    in_language: str
    language_words: dict[str, str]
    # Verbs that ask for something where they begin a sentence.
    order: str
    polite: str
    polite_question: str
    # `negation` negates the rest of its clause; `contrast` ends the negated part.
    negation: str
    contrast: str
    # Words that refer to a text included in the prompt.
    pointing: str
    # Whole prompts without a new request.
    greeting: str
    thanks: str
    acknowledgement: str
    go_on: str
    undo: str

    # To read a conversation.
    follow_up: str
    pronoun: str
    # Plural pronouns for what an answer has listed.
    those: str
    leftover: str
    changes: dict[str, str]
    transfer: str
    clause_break: str
    decision: str
    tried: str
    ordinals: list[str]

    # To write.
    headings: list[str]
    roles: dict[str, str]
    format_phrases: dict[str, str]
    change_phrases: dict[str, str]
    phrases: dict[str, str]
    questions: dict[str, str]
    reasoning: dict[str, str]
    language_names: dict[str, str]

    @cached_property
    def stopword_set(self) -> frozenset[str]:
        return frozenset(self.stopwords.split())

    @cached_property
    def pattern(self) -> dict[str, re.Pattern[str]]:
        """The single patterns by the names of their fields."""
        names = (
            "audience length constraint statement tone in_language order polite polite_question follow_up pronoun "
            "leftover transfer clause_break decision tried negation contrast pointing greeting thanks "
            "acknowledgement those go_on undo"
        )
        return {name: words_pattern(getattr(self, name)) for name in names.split()}

    @cached_property
    def table(self) -> dict[str, dict[str, re.Pattern[str]]]:
        """The tables of patterns by the names of their fields."""
        return {
            name: {kind: words_pattern(alternatives) for kind, alternatives in getattr(self, name).items()}
            for name in _PATTERN_TABLES
        }

    @cached_property
    def ordinal_patterns(self) -> list[re.Pattern[str]]:
        """Patterns for "the first", "the second" and so on."""
        return [words_pattern(alternatives) for alternatives in self.ordinals]

    def first_kind(self, table: str, text: str) -> str | None:
        """Returns the kind whose pattern matches first in the text; None without a match."""
        found = [
            (match.start(), kind) for kind, pattern in self.table[table].items() if (match := pattern.search(text))
        ]
        return min(found)[1] if found else None

    def answer_language(self, text: str) -> str | None:
        """Returns the code of the language that the text asks for in this language ("in German"); else None."""
        named = self.pattern["in_language"].search(text)
        return self.first_kind("language_words", named.group(0)) if named else None

    def main_kind(self, table: str, text: str) -> str | None:
        """Returns the kind with the most matches in the text, the earlier one of equals; None without a match."""
        counted = []
        for kind, pattern in self.table[table].items():
            starts = [match.start() for match in pattern.finditer(text)]
            if starts:
                counted.append((-len(starts), starts[0], kind))
        return min(counted)[2] if counted else None


@dataclass(frozen=True)
class UnruledLanguage:
    """Phrases of a language without rules. `headings` are the five of a structured prompt, in order."""

    headings: list[str]
    role: str
    no_context: str
    answer_in: str
    honest: str
    format: str
    known: str
    documents: str
    reasoning: str
    acknowledgement: str
    acknowledged: str


@cache
def language_of(code: str) -> Language | None:
    """Returns the language of a BCP 47 tag such as `pt-BR`; None when there are no rules for it."""
    primary = _primary_subtag(code)
    if primary not in CODES:
        return None
    content: dict[str, Any] = tomllib.loads((_FOLDER / f"{primary}.toml").read_text(encoding="utf-8"))
    unknown = set(content) - {field.name for field in fields(Language)}
    if unknown:
        raise ValueError(f"{primary}.toml holds unknown names: {sorted(unknown)}")
    return Language(**content)


@cache
def unruled_language(code: str) -> UnruledLanguage | None:
    """Returns the phrases of a BCP 47 tag's language without rules; None when there are none."""
    content = tomllib.loads(_UNRULED.read_text(encoding="utf-8"))
    primary = _primary_subtag(code)
    return UnruledLanguage(**content[primary]) if primary in content else None


def detect(text: str) -> Language | None:
    """Returns the language whose stopwords are most frequent in the text; None when no language has enough."""
    words = re.findall(r"[^\W\d_]+", text.lower())
    if not words:
        return None
    scores = []
    for code in CODES:
        language = language_of(code)
        if language is not None:
            hits = sum(word in language.stopword_set for word in words)
            scores.append((hits / len(words), language))
    share, best = max(scores, key=lambda item: item[0])
    return best if share >= 0.15 else None


def _primary_subtag(code: str) -> str:
    return code.lower().replace("_", "-").split("-")[0]
