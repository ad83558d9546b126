"""Splits texts into normalized words and stems, for comparing what two texts are about."""

import re
import unicodedata
from collections.abc import Iterator

from services.upgrader.reading.cues import cues_for, words_of_all_languages

IDEOGRAPH = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\u0e00-\u0e7f]")
POLITE = words_of_all_languages("polite")
_WORD = re.compile(r"\w+(?:['’]\w+)*")
_KANA = re.compile(r"[\u3040-\u309f]+")
_STEM_LETTERS = 6


def is_ideograph(text: str) -> bool:
    """Whether `text` has characters of a script without spaces between words."""
    return IDEOGRAPH.search(text) is not None


def words(text: str) -> list[str]:
    """The words of `text` in lower case, compatibility forms folded."""
    return [word.replace("’", "'") for word in _WORD.findall(unicodedata.normalize("NFKC", text).casefold())]


def stems(text: str) -> Iterator[str]:
    """The first letters of each word, which inflection rarely changes; character pairs in scripts without spaces."""
    for word in words(text):
        if IDEOGRAPH.search(word) and len(word) > 2:
            yield from (word[i : i + 2] for i in range(len(word) - 1))
        else:
            yield word[:_STEM_LETTERS]


def content_stems(text: str, language: str) -> frozenset[str]:
    """Stems of the words of `text` that carry its subject: no cues, polite words or numbers."""
    without = cues_for(language).subjectless()
    kept = " ".join(word for word in words(text) if word not in without and word not in POLITE)
    return frozenset(stem for stem in stems(kept) if len(stem) > 1 and not stem.isdigit() and not _KANA.fullmatch(stem))


def in_common(wanted: frozenset[str], text: frozenset[str]) -> int:
    """Counts the stems of `wanted` that are in `text` or share their first letters with one of its stems."""
    return sum(stem in text or any(len(stem) > 4 and other.startswith(stem[:4]) for other in text) for stem in wanted)
