"""What follow-ups are made of, by language: the tables in `follow_up_cues/`, loaded when a language first comes up.

- `openers` start a prompt that goes on with something: "and for Linux?", "what about Spain".
- `references` stand for something said before: "it", "the above", "your answer".
- `degrees` compare with what is there: "shorter", "more formal", "simpler".
- `edits` ask to change what is there; short and without much of their own they are follow-ups: "add examples".
- `fragments` start an addition that is no sentence: "for beginners", "as a table", "in Python".
- `tasks` ask for something of their own: "write", "explain"; with new nouns behind them that is a new topic.
- `questions` start a question of its own: "what is", "how do I".
- `breaks` announce a new topic.
- `fillers` are words without a subject matter; what is left of a prompt without them is what it is about.
"""

import tomllib
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).parent / "follow_up_cues"
_FALLBACK = "en"

Phrase = tuple[str, ...]


@dataclass(frozen=True)
class Cues:
    """The cues of one language, in lower case. Each is a tuple of words, a single one in scripts without spaces."""

    openers: frozenset[Phrase]
    references: frozenset[Phrase]
    degrees: frozenset[Phrase]
    edits: frozenset[Phrase]
    fragments: frozenset[Phrase]
    tasks: frozenset[Phrase]
    questions: frozenset[Phrase]
    breaks: frozenset[Phrase]
    fillers: frozenset[Phrase]

    def subjectless(self) -> frozenset[str]:
        """All single words that say nothing about a prompt's subject."""
        return frozenset(
            phrase[0] for field in fields(self) for phrase in getattr(self, field.name) if len(phrase) == 1
        )


@cache
def cues_for(language: str) -> Cues:
    """The cues of a BCP 47 language; English ones for a language without a table."""
    path = _FOLDER / f"{language.partition('-')[0]}.toml"
    if not path.is_file():
        path = _FOLDER / f"{_FALLBACK}.toml"
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    return Cues(
        **{
            name: frozenset(
                tuple(cue.replace("'", " ").split()) for cue in " ".join(text.split()).split(",") if cue.strip()
            )
            for name, text in tables.items()
        }
    )


@cache
def words_of_all_languages(name: str) -> frozenset[str]:
    """One of the word lists that do not depend on the language: articles, pronouns and so on."""
    tables = tomllib.loads((_FOLDER / "all_languages.toml").read_text(encoding="utf-8"))
    return frozenset(tables[name].split())
