"""Computes the features of a prompt and its conversation from which `mode.py` estimates a follow-up.

Most features do not depend on the language: length, new words, words in common, question marks. The cue tables add
openers, references, degrees, tasks and questions of the languages that have a table.
"""

import re
from dataclasses import dataclass
from functools import cached_property

from services.upgrader.reading.cues import (
    Cues,
    Phrase,
    is_ideographic,
    is_ideographic_follow_up,
    new_runs,
    words_of_all_languages,
)
from services.upgrader.reading.words import POLITE as _POLITE
from services.upgrader.reading.words import content_stems, in_common, words

_LONG = 60
_WORD = re.compile(r"-?[^\W_]+(?:[+#]+(?!\w))?")
_SENTENCES = re.compile(r"(?<=[.!?。！？])\s*(?=\S)")
_NAME = re.compile(r"(?<=\S )[A-Z]{2,}|(?<=[a-z] )[A-Z]")
_QUESTION = ("?", "？", "؟")
_ARTICLES = words_of_all_languages("articles")
_BELONGING = words_of_all_languages("belonging")
_PRONOUNS = words_of_all_languages("pronouns")
_JOINING = words_of_all_languages("joining")


@dataclass(frozen=True)
class Reading:
    """A prompt, the conversation before it (`said`), and the cues of its language. Texts are in lower case."""

    text: str
    said: str
    cues: Cues

    @cached_property
    def words(self) -> list[str]:
        return _WORD.findall(self.text)

    @cached_property
    def _known_stems(self) -> frozenset[str]:
        return frozenset(_stem(word) for word in _WORD.findall(self.said))

    @cached_property
    def subject(self) -> list[int]:
        """Positions of the words that name the subject of the prompt."""
        without = self.cues.subjectless()
        return [i for i, word in enumerate(self.words) if word.lstrip("-") not in without and word not in without]

    @cached_property
    def new(self) -> list[int]:
        """Positions of the subject's words that do not occur in the conversation."""
        return [i for i in self.subject if _stem(self.words[i]) not in self._known_stems]

    def matches(self, phrases: frozenset[Phrase], position: int) -> int:
        """The number of words of the longest phrase at `position`; 0 if there is none."""
        for length in range(min(5, len(self.words) - position), 0, -1):
            if tuple(self.words[position : position + length]) in phrases:
                return length
        return 0

    def breaks_off(self) -> bool:
        """Whether a phrase near the start announces a new topic."""
        if any(
            len(phrase) == 1 and not phrase[0].isascii() and phrase[0] in self.text[:16] for phrase in self.cues.breaks
        ):
            return True
        return any(self.matches(self.cues.breaks, position) for position in range(min(8, len(self.words))))

    def refers_anywhere(self) -> bool:
        """Whether any word refers back. The article of a noun of the prompt does not count."""
        subject = set(self.subject)
        for position, word in enumerate(self.words):
            length = self.matches(self.cues.references, position)
            if length and not (length == 1 and word in _ARTICLES and position + 1 in subject):
                return True
        return False

    def compares_first(self) -> bool:
        """Whether a comparison precedes all new words."""
        degrees = [i for i in range(len(self.words)) if self.matches(self.cues.degrees, i)]
        return bool(degrees) and not any(i < degrees[0] for i in self.new)

    @cached_property
    def head(self) -> int:
        """Position of the first word that is not a polite one."""
        return next((i for i, word in enumerate(self.words) if word not in _POLITE), 0)

    def opener_length(self) -> int:
        """The number of words of a follow-up opener at the start; 0 if there is none."""
        return self.matches(self.cues.openers, 0) or (self.matches(self.cues.openers, self.head) and self.head + 1)

    def is_request(self, start: int | None = None) -> bool:
        """Whether a task or question begins at the head, or at `start` after polite words."""
        position = self.head if start is None else start
        while position < len(self.words) and start is not None and self.words[position] in _POLITE:
            position += 1
        # In some languages the verb or the question word is at the end.
        positions = {position, len(self.words) - 1, len(self.words) - 2} | ({0} if start is None else set())
        return any(self.matches(self.cues.tasks | self.cues.questions, i) for i in positions if i >= 0)

    def asks_anew(self, start: int) -> bool:
        """Whether a separate task or question follows from `start`: with new words, and no reference back."""
        new = [i for i in self.new if i >= start]
        return len(new) >= 2 and self.is_request(start) and not self.refers_back(start) and not self.mentions_known()

    def refers_back(self, start: int = 0) -> bool:
        """Whether a reference back precedes all new words."""
        limit = self.new[0] if self.new else len(self.words)
        if self._names_a_part(start) or self._asks_about_it():
            return True
        for position in range(start, len(self.words)):
            length = self.matches(self.cues.references, position)
            if not length:
                continue
            before_new = position <= limit
            # `a query that lists`, `das Wetter`: a relative pronoun, or the article of a noun of the prompt.
            relative = position - 1 in self.subject and self.words[position] in (
                "that",
                "das",
                "dat",
                "die",
                "lo",
                "which",
            )
            article = self.words[position] in ("das", "lo", "het", "li", "o", "a") and position + 1 in self.subject
            if before_new and not relative and not article:
                return True
        return False

    def _names_a_part(self, start: int) -> bool:
        """Whether there is a reference of several words (`your answer`, `step 2`)."""
        for position in range(start, len(self.words)):
            length = self.matches(self.cues.references, position)
            if length > 1 and "".join(self.words[position + length : position + length + 1]) not in _BELONGING:
                return True
        return False

    def _asks_about_it(self) -> bool:
        """Whether it is a question of one clause with a pronoun: `how much space does it need?`"""
        if not self.asks() or len(self.words) > 12 or "," in self.text:
            return False
        pronoun = next((i for i, word in enumerate(self.words) if word in _PRONOUNS), 0)
        return pronoun > 0 and _JOINING.isdisjoint(self.words[:pronoun])

    def compares(self) -> bool:
        """Whether it asks for a comparative change, with new words only for its direction (`more dramatic`)."""
        degrees = [i for i in range(len(self.words)) if self.matches(self.cues.degrees, i)]
        if not degrees or any(i < degrees[0] for i in self.new):
            return False
        return len(self.new) <= (1 if self.asks() else 2)

    def asks(self) -> bool:
        return self.matches(self.cues.questions, 0) > 0 or self.matches(self.cues.questions, self.head) > 0

    def edits(self) -> bool:
        """Whether it asks for an edit. With a verb that can also order something new, no word may be new."""
        if not self.matches(self.cues.edits, self.head) or len(self.words) > 18:
            return False
        allowed = 0 if self.matches(self.cues.tasks, self.head) else 2
        return len(self.new) <= allowed

    def is_fragment(self) -> bool:
        """Whether it is an addition without a full sentence: `for beginners`, `as a table`."""
        if not self.matches(self.cues.fragments, self.head) or len(self.words) > 8 or self.asks():
            return False
        return not any(
            self.matches(self.cues.questions | self.cues.tasks, i) for i in range(self.head + 2, len(self.words))
        )

    def mentions_known(self) -> bool:
        """Whether something from the conversation is definite: `the function`, not `the capital of Peru`."""
        for i in self.subject:
            if i in self.new or i == 0 or self.words[i - 1] not in _ARTICLES:
                continue
            follows = self.words[i + 1 : i + 2]
            if not follows or (follows[0] not in _BELONGING and i + 1 not in self.new):
                return True
        return False

    def mostly_known(self) -> bool:
        """Whether most subject words occurred before. Of requests only questions count: tasks may be repeated."""
        known = len(self.subject) - len(self.new)
        if self.is_request():
            return self.asks() and known >= 2 and known > len(self.new)
        return known > len(self.new)


def features_of(text: str, reading: Reading, language: str) -> dict[str, float]:
    """The features of a prompt by name, each 0 to 1. `text` is the prompt of `reading` in its original case."""
    parts = [part for part in _SENTENCES.split(text.strip()) if part.strip()]
    if len(parts) > 1 and len(words(parts[0])) <= 3 and not parts[0].strip().endswith(_QUESTION):
        # Skip an interjection at the start: "Oh wow. Why did they break in?"
        text = " ".join(parts[1:])
        reading = Reading(text.lower(), reading.said, reading.cues)
    own = _ideographic_features(reading, language) if is_ideographic(language) else _features(reading, language)
    asked = any(mark in text for mark in _QUESTION)
    content = content_stems(text, language)
    known = in_common(content, content_stems(reading.said, language))
    new = own.pop("new")
    asks, task = bool(own["question"] or asked), bool(own["task"])
    return {
        **own,
        **{f"new{count}": float(min(new, 4) == count) for count in range(1, 5)},
        "nothing": float(new == 0),
        "known": min(known, 3) / 3,
        "known_share": known / len(content) if content else 0.0,
        "mark": float(asked),
        "short_mark": float(asked and len(words(text)) <= 5),
        "statement": float(text.strip()[-1:] in (".", "!", "。", "！")),
        "name": float(_NAME.search(text) is not None),
        "asks_or_orders": float(bool(own["question"]) or task),
        "asks_new1": float(asks and new == 1),
        "asks_new2": float(asks and new >= 2),
        "asks_new3": float(asks and new >= 3),
        "orders_new1": float(task and new == 1),
        "orders_new2": float(task and new >= 2),
        "neither_new2": float(new >= 2 and not asks and not task),
        "refers_asking": own["refers"] * float(asks),
        "refers_new2": own["refers"] * float(new >= 2),
        "rule_new2": own["rule"] * float(new >= 2),
        "rule_new3": own["rule"] * float(new >= 3),
    }


def ideographic_goes_on(reading: Reading, payload: bool) -> bool:
    """Whether the rules alone take a Chinese or Japanese prompt for a follow-up."""
    return is_ideographic_follow_up(reading.text, reading.said, reading.cues, payload)


def _features(reading: Reading, language: str) -> dict[str, float]:
    """Features from the cue tables of a language with spaces between words. `new` is a count."""
    cues, count = reading.cues, len(reading.words)
    content = content_stems(reading.text, language)
    return {
        "rule": float(_looks_like_a_follow_up(reading)),
        "task": float(reading.matches(cues.tasks, reading.head) > 0),
        "question": float(reading.asks()),
        "refers_first": float(reading.refers_back()),
        "refers": float(reading.refers_anywhere()),
        "degree": float(reading.compares_first()),
        "opener": float(reading.opener_length() > 0),
        "fragment": float(reading.matches(cues.fragments, reading.head) > 0),
        "mentions": float(reading.mentions_known()),
        "new": len(content) - in_common(content, content_stems(reading.said, language)),
        **_by_length(count, (2, 4, 6, 9)),
    }


def _ideographic_features(reading: Reading, language: str) -> dict[str, float]:
    """The same for Chinese and Japanese, where cues may occur anywhere."""
    cues, text = reading.cues, reading.text
    return {
        "rule": float(is_ideographic_follow_up(text, reading.said, cues, False)),
        "task": float(_is_in(cues.tasks, text)),
        "question": float(_is_in(cues.questions, text)),
        "refers_first": float(_is_in(cues.references, text)),
        "refers": float(_is_in(cues.references, text)),
        "degree": float(_is_in(cues.degrees, text)),
        "opener": float(any(text.startswith(cue) for (cue,) in cues.openers)),
        "fragment": 0.0,
        "mentions": 0.0,
        "new": new_runs(text, reading.said, cues, language),
        **_by_length(len(text.strip("。？?！! ")), (4, 8, 11, 16)),
    }


def _by_length(length: int, bounds: tuple[int, ...]) -> dict[str, float]:
    lowest = 0
    found = {}
    for number, bound in enumerate(bounds):
        found[f"length{number}"] = float(lowest < length <= bound)
        lowest = bound
    return found


def _is_in(phrases: frozenset[Phrase], text: str) -> bool:
    return any(phrase[0] in text for phrase in phrases if len(phrase) == 1)


def _looks_like_a_follow_up(reading: Reading) -> bool:
    if len(reading.words) > _LONG:
        return reading.refers_back() and reading.mostly_known()
    return (
        _goes_on(reading)
        or reading.refers_back()
        or reading.compares()
        or reading.edits()
        or reading.is_fragment()
        or reading.mentions_known()
        or reading.mostly_known()
        or (len(reading.words) <= 3 and not reading.is_request())
    )


def _goes_on(reading: Reading) -> bool:
    opener = reading.opener_length()
    return opener > 0 and len(reading.words) <= 25 and not reading.asks_anew(opener)


def _stem(word: str) -> str:
    return word.lstrip("-")[:5]
