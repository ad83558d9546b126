"""Detects the language of a prompt as a BCP 47 tag. Made for prompts of a few words."""

import asyncio
import mmap
import re
import tempfile
import tomllib
import unicodedata
from array import array
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.contracts.upgrade_tasks import ConversationMessage

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

DEFAULT_LANGUAGE = "en"
_LONGEST_LOOKED_AT = 2_000
# The statistical model guesses wildly below that many words.
_WORDS_FOR_MODEL = 6
_NOT_LANGUAGE = re.compile(
    r"```.*?(?:```|$)|`[^`\n]*`|https?://\S+|www\.\S+|\S+@\S+\.\S+|<[A-Z_]+_\d+>|</?[a-z][^<>\n]{0,80}>"
    r"|\bw/o?(?!\w)|\b\w+(?:[_./\\]\w+)+\b|\b[a-z]+[A-Z]\w*\b|\d+",
    re.DOTALL,
)
_QUOTED = re.compile(
    r'"[^"\n]{2,}"|“[^”\n]{2,}”|„[^“”\n]{2,}[“”]|«[^»\n]{2,}»|「[^」\n]{2,}」|(?<!\w)\'[^\'\n]{2,}\'(?!\w)'
)
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")

# A script's range -> its language where it has only one (or one that is meant unless letters say otherwise).
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
_SCRIPT = re.compile("|".join(f"(?P<{name}>{letters}+)" for name, letters in _SCRIPTS))
# Signs of an ideographic script say more than one letter of an alphabet does.
_WEIGHT = {"kana": 2.5, "han": 3.5, "ko": 2.5}
_FAMILIES: dict[str, tuple[tuple[str, str], ...]] = {
    "cyrillic": (("uk", "іїєґ"), ("sr", "ђјљњћџ"), ("be", "ў"), ("mk", "ѓќѕ"), ("ru", "ыэё")),
    "arabic": (("ur", "ٹڈڑےں"), ("fa", "پچژگیک")),
}
_UKRAINIAN = re.compile(r"\b(?:чому|що|як|це|зроби|коротше|поясни|будь ласка|де|коли|простою)\b")
_BULGARIAN = re.compile(r"\b(?:какво|защо|къде|кога|това|този|със|във|обясни|направи|на български)\b|ъ[^еяюё\W]")


def detect_language(prompt: str, history: Sequence[ConversationMessage] = ()) -> str:
    """The language of `prompt`; of the conversation's last telling message where the prompt is too short to tell."""
    sure, guess = _language_of(prompt)
    if sure:
        return sure
    for role in ("user", "assistant"):
        for message in reversed(history):
            if message.role == role:
                earlier, _ = _language_of(message.content)
                if earlier:
                    return earlier
    return guess or DEFAULT_LANGUAGE


def _language_of(text: str) -> tuple[str | None, str | None]:
    """The language that is sure, if any, and else the best guess, if any."""
    letters = _NOT_LANGUAGE.sub(" ", unicodedata.normalize("NFC", text[:_LONGEST_LOOKED_AT]))
    unquoted = _QUOTED.sub(" ", letters)
    plain = unquoted if _WORD.search(unquoted) else letters
    other = _other_script(plain)
    if other:
        return other, other
    words = [word.replace("’", "'").lower() for word in _WORD.findall(plain) if word.isascii() or _is_latin(word)]
    return _latin_language(words) if words else (None, None)


def _is_latin(word: str) -> bool:
    return not _SCRIPT.search(word)


def _other_script(text: str) -> str | None:
    """The language of a script other than Latin, when the text is mainly in it."""
    counts: Counter[str] = Counter()
    for match in _SCRIPT.finditer(text):
        counts[match.lastgroup or ""] += match.end() - match.start()
    if not counts:
        return None
    weighted = sum(_WEIGHT.get(script, 1.0) * count for script, count in counts.items())
    latin_words = [word.lower() for word in _WORD.findall(text) if word.isascii()]
    function_words = sum(any(word in words for words in _words().values()) for word in latin_words)
    if function_words >= 3 or sum(map(len, latin_words)) > 2 * weighted:
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


@cache
def _tables() -> dict[str, dict[str, str]]:
    return tomllib.loads(Path(__file__).with_name("language_words.toml").read_text(encoding="utf-8"))


@cache
def _words() -> Mapping[str, frozenset[str]]:
    return {language: frozenset(words.split()) for language, words in _tables()["frequent_words"].items()}


@cache
def _letters() -> Mapping[str, tuple[str, ...]]:
    return {language: tuple(letters.split()) for language, letters in _tables()["telling_letters"].items()}


@lru_cache(maxsize=4096)
def _languages_with(word: str) -> tuple[str, ...]:
    return tuple(language for language, words in _words().items() if word in words)


def _latin_language(words: list[str]) -> tuple[str | None, str | None]:
    scores: defaultdict[str, float] = defaultdict(float)
    for word in words:
        for part in {word, *word.split("'"), *word.split("-")}:
            languages = _languages_with(part) if len(part) < 20 else ()
            for language in languages:
                scores[language] += 1.0 / len(languages)
    joined = " ".join(words)
    marked = {language: sum(mark in joined for mark in marks) for language, marks in _letters().items()}
    for language, count in marked.items():
        # In plain letters only, such a string ("sch", "ij") stands in English names, too.
        scores[language] += (0.5 if not joined.isascii() else 0.1) * min(count, 4)
    ranked = sorted(scores.items(), key=lambda item: item[1], reverse=True)[:2]
    best, score = ranked[0]
    if score >= 0.9 and score >= 1.5 * ranked[1][1] + 0.1:
        return best, best
    english = scores[DEFAULT_LANGUAGE]
    nothing_else = joined.isascii() and (score < 0.3 or english >= score)
    if nothing_else and (len(words) < _WORDS_FOR_MODEL or english >= 0.3):
        # Nothing, or English as much as anything: only a text of some length could tell otherwise.
        return None, DEFAULT_LANGUAGE
    return _by_model(joined, scores, len(words))


def _by_model(text: str, scores: Mapping[str, float], size: int) -> tuple[str | None, str | None]:
    """What the statistical model makes of words that the tables leave open. Sure only with some text to go by."""
    if len(text) < 4:
        return None, max(scores, key=scores.__getitem__) if max(scores.values()) >= 0.3 else DEFAULT_LANGUAGE
    # The model's scores are logarithms of probabilities; a table point is worth a few nats.
    combined = sorted(
        (
            (score + 6.0 * scores.get(language, 0.0), language)
            for language, score in _model().rank(text)
            # A language that nothing else speaks for needs some text.
            if size >= _WORDS_FOR_MODEL or scores.get(language, 0.0) >= 0.25
        ),
        reverse=True,
    )
    if not combined:
        return None, DEFAULT_LANGUAGE
    best_score, best = combined[0]
    second_score = combined[1][0] if len(combined) > 1 else best_score - 6.0
    sure = best_score - second_score >= (12.0 if len(text) < 15 else 6.0)
    return (best if sure else None), best


def load_language_model() -> None:
    """Loads the statistical model, which takes about a second: at the start, and away from the event loop."""
    _model()


@cache
def _model() -> "LanguageIdentifier":
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    identifier.set_languages([*_words(), "ca", "hr", "sk", "sl", "et", "lv", "lt", "sq", "tl", "ms", "sw", "af", "eu"])
    # What choosing other languages would need: 28 MB that nothing reads any more.
    identifier._full_model = None  # noqa: SLF001 -- the version is pinned
    identifier.tk_nextmove = _in_a_file(identifier.tk_nextmove)
    return identifier


def _in_a_file(table: "array[int]") -> Any:
    """The same numbers in a mapped file without a name: of 42 MB only what is looked at takes memory."""
    with tempfile.TemporaryFile() as file:
        table.tofile(file)
        file.flush()
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return memoryview(mapped).cast(table.typecode)  # type: ignore[arg-type]


class LanguageModelLoading:
    """A component that loads the model in a thread while the service starts. Until then, whoever needs it loads it."""

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins to load; does not wait for it."""
        self._task = asyncio.create_task(asyncio.to_thread(load_language_model))

    async def stop(self, grace_seconds: float) -> None:
        """Waits for the thread, which cannot be cut short, within the grace."""
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=grace_seconds)
