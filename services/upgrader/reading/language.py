"""Detects the language of a prompt as a BCP 47 tag, also for prompts of a few words.

Evidence in order of precedence: the script; tables of frequent words, letters and endings; the conversation; a
statistical model.
"""

import asyncio
import mmap
import re
import tempfile
import tomllib
import unicodedata
from array import array
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.contracts.upgrade_tasks import ConversationMessage

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

DEFAULT_LANGUAGE = "en"
_MAX_CHARACTERS = 2_000
# Below this number of words, the statistical model needs support from the tables, the letters or the conversation.
_WORDS_FOR_MODEL = 6
# A single word from the tables does not decide if this many other words are in no table.
_MOST_UNKNOWN = 2
# The value of a table point in the model's unit, the logarithm of a probability.
_POINT = 6.0
# The value of the conversation's language in table points: that of one word of only one language.
_CONVERSATION = 1.0
# The lead of English in table points where all letters are ASCII: most such prompts are in English.
_ENGLISH = 1.5
_NOT_LANGUAGE = re.compile(
    r"```.*?(?:```|$)|`[^`\n]*`|https?://\S+|www\.\S+|\S+@\S+\.\S+"
    r"|\$?\{\{[^{}\n]{1,80}\}\}|\$?\{\w[^{}\n\"':;]{0,60}\}|</?[^\W\d_][^<>\n]{0,80}>|%(?:\(\w+\))?[sd](?!\w)"
    r"|\bw/o?(?!\w)|\b\w+(?:[_./\\]\w+)+\b|\b[a-z]+[A-Z]\w*\b|\d+",
    re.DOTALL,
)
_QUOTED = re.compile(
    r'"[^"\n]{2,}"|“[^”\n]{2,}”|„[^“”\n]{2,}[“”]|«[^»\n]{2,}»|「[^」\n]{2,}」|(?<!\w)\'[^\'\n]{2,}\'(?!\w)'
)
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
# "Gare du Nord", but not at the start, where any word has a capital letter.
_NAME_WITH_PARTICLE = re.compile(
    r"(?<=\w )[A-ZÀ-ÖØ-Þ]\w+ (?:da|de|del|della|di|do|dos|du|el|la|le|van) (?=[A-ZÀ-ÖØ-Þ])"
)
# Name and character range of each script. Scripts of one language have its tag as name.
_SCRIPTS: tuple[tuple[str, str], ...] = (
    ("kana", r"[\u3040-\u30ff\uff66-\uff9f]"),
    ("han", r"[\u3400-\u4dbf\u4e00-\u9fff々]"),
    ("ko", r"[\uac00-\ud7af\u1100-\u11ff]"),
    ("cyrillic", r"[\u0400-\u052f]"),
    ("arabic", r"[\u0600-\u06ff\u0750-\u077f]"),
    ("he", r"[\u0590-\u05ff]"),
    ("th", r"[\u0e00-\u0e7f]"),
    ("lo", r"[\u0e80-\u0eff]"),
    ("hi", r"[\u0900-\u097f]"),
    ("bn", r"[\u0980-\u09ff]"),
    ("pa", r"[\u0a00-\u0a7f]"),
    ("gu", r"[\u0a80-\u0aff]"),
    ("ta", r"[\u0b80-\u0bff]"),
    ("te", r"[\u0c00-\u0c7f]"),
    ("kn", r"[\u0c80-\u0cff]"),
    ("ml", r"[\u0d00-\u0d7f]"),
    ("si", r"[\u0d80-\u0dff]"),
    ("el", r"[\u0370-\u03ff\u1f00-\u1fff]"),
    ("ka", r"[\u10a0-\u10ff]"),
    ("hy", r"[\u0530-\u058f]"),
    ("km", r"[\u1780-\u17ff]"),
    ("my", r"[\u1000-\u109f]"),
    ("am", r"[\u1200-\u137f]"),
)
_SPACELESS = re.compile(
    r"[\u3040-\u30ff\uff66-\uff9f\u3400-\u4dbf\u4e00-\u9fff々\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]+"
)
_SCRIPT = re.compile("|".join(f"(?P<{name}>{letters}+)" for name, letters in _SCRIPTS))
# One of these characters carries more text than one letter of an alphabet.
_WEIGHT = {"kana": 2.5, "han": 3.5, "ko": 2.5}
_FAMILIES: dict[str, tuple[tuple[str, str], ...]] = {
    "cyrillic": (("uk", "іїєґ"), ("sr", "ђјљњћџ"), ("be", "ў"), ("mk", "ѓќѕ"), ("ru", "ыэё")),
    "arabic": (("ur", "ٹڈڑےں"), ("fa", "پچژگیک")),
}
_UKRAINIAN = re.compile(r"\b(?:чому|що|як|це|зроби|коротше|поясни|будь ласка|де|коли|простою)\b")
_BULGARIAN = re.compile(r"\b(?:какво|защо|къде|кога|това|този|със|във|обясни|направи|на български)\b|ъ[^еяюё\W]")


def detect_language(prompt: str, history: Sequence[ConversationMessage] = ()) -> str:
    """Returns the language of `prompt` as a BCP 47 tag.

    Where the prompt is a single word, or too short to tell, the language of the conversation decides.
    """
    reading = _read(prompt)
    if reading.is_clear and reading.telling > 1:
        return reading.best
    earlier = _language_of_conversation(history)
    if earlier is None:
        return reading.best if reading.is_clear else _weigh(reading).best
    if reading.telling <= 1 and (reading.is_clear or len(reading.words) < 2):
        return earlier
    reading.scores[earlier] += _CONVERSATION
    weighed = _weigh(reading)
    return weighed.best if weighed.is_clear else earlier


def load_language_model() -> None:
    """Loads the statistical model. This takes about a second, so call it outside the event loop, at the start."""
    _model()


class LanguageModelLoading:
    """A component that loads the model in a thread while the service starts. Earlier detections load it themselves."""

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts loading and returns at once."""
        self._task = asyncio.create_task(asyncio.to_thread(load_language_model))

    async def stop(self, grace_seconds: float) -> None:
        """Waits up to `grace_seconds` for the thread, which cannot be cancelled."""
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=grace_seconds)


@dataclass
class _Reading:
    """The language of a text by its script and by the tables; `telling` is the number of words that support `best`."""

    best: str = DEFAULT_LANGUAGE
    is_clear: bool = False
    telling: int = 0
    words: tuple[str, ...] = ()
    scores: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))


def _language_of_conversation(history: Sequence[ConversationMessage]) -> str | None:
    """Returns the language of the last message whose language is clear; user messages take precedence."""
    for role in ("user", "assistant"):
        for message in reversed(history):
            if message.role == role:
                reading = _read(message.content)
                weighed = reading if reading.is_clear else _weigh(reading)
                if weighed.is_clear:
                    return weighed.best
    return None


def _read(text: str) -> _Reading:
    letters = _NOT_LANGUAGE.sub(" ", unicodedata.normalize("NFC", text[:_MAX_CHARACTERS]))
    unquoted = _QUOTED.sub(" ", letters)
    plain = unquoted if _WORD.search(unquoted) else letters
    other = _other_script(plain)
    if other:
        return _Reading(other, is_clear=True, telling=_native_words(plain))
    return _read_latin(_NAME_WITH_PARTICLE.sub(" ", plain))


def _native_words(text: str) -> int:
    """Counts the words in other scripts than Latin; two signs of a script without spaces count as one word."""
    signs = sum(len(match[0]) for match in _SPACELESS.finditer(text))
    spaced = sum(_SCRIPT.search(word) is not None for word in _WORD.findall(_SPACELESS.sub(" ", text)))
    return (signs + 1) // 2 + spaced


def _other_script(text: str) -> str | None:
    """Returns the language of a script other than Latin if the text is mainly in it."""
    counts: Counter[str] = Counter()
    for match in _SCRIPT.finditer(text):
        counts[match.lastgroup or ""] += match.end() - match.start()
    if not counts:
        return None
    latin = [word for word in _WORD.findall(text) if word.isascii() and word.lower() not in _borrowed()]
    frequent = sum(bool(_languages_with(word.lower())) for word in latin)
    # "Explain ..." is an instruction in English, whatever it is about.
    starts_with_latin = bool(latin) and text.lstrip().startswith(latin[0]) and frequent > 0
    if frequent >= 3 or frequent + starts_with_latin > _native_words(text):
        return None
    weighted = sum(_WEIGHT.get(script, 1.0) * count for script, count in counts.items())
    if sum(len(word) for word in latin if not word[0].isupper()) > 2 * weighted:
        return None
    script = counts.most_common(1)[0][0]
    if script in ("kana", "han"):
        return "ja" if counts["kana"] * 12 >= counts["han"] and counts["kana"] else "zh"
    return _within_family(script, text.lower()) if script in _FAMILIES else script


def _within_family(script: str, text: str) -> str:
    for language, letters in _FAMILIES[script]:
        if any(letter in text for letter in letters):
            return language
    if script == "arabic":
        return "ar"
    if _UKRAINIAN.search(text):
        return "uk"
    return "bg" if _BULGARIAN.search(text) else "ru"


def _read_latin(text: str) -> _Reading:
    found = [word.replace("’", "'") for word in _WORD.findall(text) if not _SCRIPT.search(word)]
    words = tuple(word.lower() for word in found)
    scores: defaultdict[str, float] = defaultdict(float)
    telling: Counter[str] = Counter()
    unknown = 0
    for position, word in enumerate(words):
        if word in _borrowed():
            continue
        points = _points_of_word(word)
        unknown += not points
        # Within a sentence, a capital letter mostly starts a name (or a German noun next to function words).
        weight = 0.5 if position and found[position][0].isupper() else 1.0
        for language, value in points:
            scores[language] += weight * value
            telling[language] += 1
    if not scores:
        return _Reading(words=words)
    ranked = sorted(scores.items(), key=lambda item: item[1], reverse=True)
    best, score = ranked[0]
    second = ranked[1][1] if len(ranked) > 1 else 0.0
    has_support = telling[best] > 1 or unknown < _MOST_UNKNOWN
    return _Reading(best, has_support and score >= 0.9 and score >= 1.5 * second + 0.1, telling[best], words, scores)


@lru_cache(maxsize=8192)
def _points_of_word(word: str) -> tuple[tuple[str, float], ...]:
    """Returns (language, points) for each language that has the word, its telling letters or its ending."""
    points: defaultdict[str, float] = defaultdict(float)
    for part in dict.fromkeys((word, *word.split("'"), *word.split("-"))) if len(word) < 40 else ():
        languages = _languages_with(part)
        for language in languages:
            points[language] += 1.0 / len(languages)
    # In plain letters only, a telling string ("sch", "ij") stands in English names, too.
    weight = 0.2 if word.isascii() else 0.5
    for language, marks in _letters().items():
        points[language] += weight * min(2, sum(mark in word for mark in marks))
    for language, endings in _endings().items():
        if word.endswith(endings) and len(word) >= 5:
            points[language] += 0.4
    return tuple((language, value) for language, value in points.items() if value)


def _weigh(reading: _Reading) -> _Reading:
    """Adds the statistical model's verdict on a text that the tables leave open."""
    own = tuple(word for word in reading.words if word not in _borrowed())
    text, scores = " ".join(own), reading.scores
    best, score = max(scores.items(), key=lambda item: item[1], default=(DEFAULT_LANGUAGE, 0.0))
    english = scores[DEFAULT_LANGUAGE]
    unknown = sum(not _points_of_word(word) for word in own)
    undecided = _Reading(words=reading.words, scores=scores)
    prior = {DEFAULT_LANGUAGE: _ENGLISH} if text.isascii() else {}
    # Nothing, or English as much as anything: the model would guess.
    if not own or (text.isascii() and (score < 0.2 or english >= score) and (unknown < 2 or english >= 0.3)):
        return undecided
    if len(text) < 4:
        return replace(undecided, best=best if score >= 0.3 else DEFAULT_LANGUAGE)

    def is_candidate(language: str) -> bool:
        if len(own) >= _WORDS_FOR_MODEL or scores.get(language, 0.0) >= 0.2:
            return True
        if language == DEFAULT_LANGUAGE and text.isascii():
            return True
        return score < 0.2 and language in _words()

    ranked = sorted(
        (
            (points + _POINT * (scores.get(language, 0.0) + prior.get(language, 0.0)), language)
            for language, points in _model().rank(text)
            if is_candidate(language)
        ),
        reverse=True,
    )
    if not ranked:
        return undecided
    first = ranked[0][0]
    second = ranked[1][0] if len(ranked) > 1 else first - _POINT
    is_clear = first - second >= (12.0 if len(text) < 15 else 6.0)
    return replace(undecided, best=ranked[0][1], is_clear=is_clear, telling=len(own))


@cache
def _tables() -> dict[str, dict[str, str]]:
    return tomllib.loads(Path(__file__).with_name("language_words.toml").read_text(encoding="utf-8"))


@cache
def _words() -> Mapping[str, frozenset[str]]:
    return {language: frozenset(words.split()) for language, words in _tables()["frequent_words"].items()}


@cache
def _letters() -> Mapping[str, tuple[str, ...]]:
    return {language: tuple(letters.split()) for language, letters in _tables()["telling_letters"].items()}


@cache
def _endings() -> Mapping[str, tuple[str, ...]]:
    return {language: tuple(endings.split()) for language, endings in _tables()["telling_endings"].items()}


@cache
def _borrowed() -> frozenset[str]:
    return frozenset(_tables()["borrowed"]["words"].split())


@lru_cache(maxsize=4096)
def _languages_with(word: str) -> tuple[str, ...]:
    return tuple(language for language, words in _words().items() if word in words)


@cache
def _model() -> "LanguageIdentifier":
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    identifier.set_languages([*_words(), "ca", "hr", "sk", "sl", "et", "lv", "lt", "sq", "tl", "ms", "sw", "af", "eu"])
    # Frees 28 MB that are only needed to choose other languages.
    identifier._full_model = None  # noqa: SLF001 -- the version is pinned
    identifier.tk_nextmove = _mapped_from_file(identifier.tk_nextmove)
    return identifier


def _mapped_from_file(table: "array[int]") -> Any:
    """The same numbers in a memory-mapped temporary file: of 42 MB only the pages in use take memory."""
    with tempfile.TemporaryFile() as file:
        table.tofile(file)
        file.flush()
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return memoryview(mapped).cast(table.typecode)  # type: ignore[arg-type]
