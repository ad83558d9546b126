"""Loads the follow-up cues of each language from `follow_up_cues/`, and applies them to Chinese and Japanese.

A cue is a word or phrase that suggests that a prompt continues the conversation, or that it does not.
"""

import re
import tomllib
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).parent / "follow_up_cues"
_FALLBACK = "en"
_SIGN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff々]|[a-z0-9][a-z0-9.+#-]*")
_RUN = re.compile(r"[\u3400-\u9fff々]+|[\u30a0-\u30ff]+|[a-z0-9][a-z0-9.+#-]*")
_GOES_ON_AT_END = re.compile(r"(?:呢|は)[?？。！!\s]*$")
_POLITE_START = re.compile(r"^[\s、,，]*(?:请|請|现在|現在|麻烦|能不能|可以|帮我把|今度は|では|それでは)?[\s、,，]*")
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
        """All single words among the cues; none of them names a prompt's subject."""
        return frozenset(
            phrase[0] for field in fields(self) for phrase in getattr(self, field.name) if len(phrase) == 1
        )


@cache
def cues_for(language: str) -> Cues:
    """The cues of a BCP 47 language; the English ones for a language without a table."""
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
def has_cues(language: str) -> bool:
    """Whether there is a table of cues for a BCP 47 language."""
    return (_FOLDER / f"{language.partition('-')[0]}.toml").is_file()


@cache
def words_of_all_languages(name: str) -> frozenset[str]:
    """One of the word lists that do not depend on the language: articles, pronouns and so on."""
    tables = tomllib.loads((_FOLDER / "all_languages.toml").read_text(encoding="utf-8"))
    return frozenset(tables[name].split())


def is_ideographic(language: str) -> bool:
    """Whether the language is written without spaces between its words."""
    return language.partition("-")[0] in ("zh", "ja")


def is_ideographic_follow_up(text: str, said: str, cues: Cues, payload: bool) -> bool:
    """Whether the cues show a follow-up in a text without spaces. Both texts are in lower case."""
    text = _POLITE_START.sub("", text)
    if _first(cues.breaks, text[:16]) is not None:
        return False
    opener = _starts(cues.openers, text)
    if payload:
        return opener
    rest = _without_cues(text, cues)
    new = _new_signs(rest, said)
    length = len(_SIGN.findall(text))
    if not new:
        return length <= 40
    asks = _first(cues.tasks, text) is not None or _first(cues.questions, text) is not None
    reference, first_new = _first(cues.references, text), min(text.find(sign) for sign in new)
    if reference is not None and reference <= first_new and length <= 60:
        return True
    if _first(cues.degrees, text) is not None and len(new) <= (2 if asks else 4):
        return True
    if opener and not (asks and len(new) >= 3) and length <= 30:
        return True
    if _GOES_ON_AT_END.search(text) and len(new) <= (2 if asks else 4):
        return True
    if _first(cues.edits, text) is not None and len(new) <= (2 if asks else 6):
        return True
    return not asks and (length <= 4 or (_starts(cues.fragments, text) and length <= 8))


def new_runs(text: str, said: str, cues: Cues, language: str) -> int:
    """Estimates how many words of `text`, without cues, are new to the conversation. Both texts are in lower case."""
    rest = _without_cues(_POLITE_START.sub("", text), cues)
    runs = [run for run in _RUN.findall(rest) if run not in said]
    if language.startswith("zh"):
        return sum((len(run) + 1) // 2 for run in runs)
    return len(runs) + sum((len(run) - 1) // 3 for run in runs)


def _first(phrases: frozenset[Phrase], text: str) -> int | None:
    positions = [position for (cue,) in phrases if (position := text.find(cue)) != -1]
    return min(positions, default=None)


def _starts(phrases: frozenset[Phrase], text: str) -> bool:
    return any(text.startswith(cue) for (cue,) in phrases)


def _without_cues(text: str, cues: Cues) -> str:
    for cue in sorted(cues.subjectless(), key=lambda cue: (-len(cue), cue)):
        text = text.replace(cue, " ")
    return text


def _new_signs(rest: str, said: str) -> list[str]:
    """Characters and Latin words of `rest` that do not occur in the conversation."""
    return [sign for sign in _SIGN.findall(rest) if sign not in said]
