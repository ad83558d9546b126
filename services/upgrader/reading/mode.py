"""Whether a prompt starts something (`full`) or goes on with the conversation (`contextual`). Rules only, no model.

A prompt is contextual when it cannot be understood alone. In this order:

1. Without a conversation, or with a phrase that announces a new topic, it is full.
2. With nothing of its own (`why?`, `make it shorter`, `now in Vietnamese`) it is contextual.
3. With text of its own attached (code, a long quotation) it is full, unless it asks for the same again.
4. An opener (`and for Linux?`), a reference before anything new is named (`translate it`), a comparison (`more
   formal`), an edit (`add a section about prices`) or a fragment (`for beginners`) makes it contextual, unless
   a task or question with new nouns follows (`ok, now write a SQL query that lists customers`).
5. A definite mention of something from the conversation (`a test for the function`), or mostly its words, likewise.
6. What is left is full, save one to three words that neither ask nor order (`Germany?`).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from services.upgrader.reading.cues import (
    Cues,
    Phrase,
    cues_for,
    is_ideographic,
    is_ideographic_follow_up,
    words_of_all_languages,
)
from services.upgrader.reading.language import detect_language
from shared.contracts.upgrade_tasks import ConversationMessage

_LOOKED_AT_MESSAGES = 6
_LOOKED_AT_CHARACTERS = 4_000
_LONG = 60
_PAYLOAD = re.compile(r"```.*?(?:```|$)|\"[^\"\n]{25,}\"|“[^”\n]{25,}”|«[^»\n]{25,}»|(?<=:)\s*\n.{60,}", re.DOTALL)
_ADDRESS = re.compile(r"https?://\S+")
_WORD = re.compile(r"-?[^\W_]+(?:[+#]+(?!\w))?")
_ARTICLES = words_of_all_languages("articles")
_BELONGING = words_of_all_languages("belonging")
_PRONOUNS = words_of_all_languages("pronouns")
_JOINING = words_of_all_languages("joining")
_POLITE = words_of_all_languages("polite")


def decide_mode(prompt: str, history: Sequence[ConversationMessage]) -> Literal["full", "contextual"]:
    """`contextual` for a follow-up that needs the conversation to be understood, else `full`."""
    turns = [message.content for message in history if message.role != "system" and message.content.strip()]
    if not turns:
        return "full"
    said = "\n".join(turn[-_LOOKED_AT_CHARACTERS:] for turn in turns[-_LOOKED_AT_MESSAGES:])
    language = detect_language(prompt, history)
    payload = _PAYLOAD.search(prompt) is not None
    text = _ADDRESS.sub(" ", _PAYLOAD.sub(" ", prompt)).lower().replace("’", "'")
    cues = cues_for(language)
    if is_ideographic(language):
        return "contextual" if is_ideographic_follow_up(text, said.lower(), cues, payload) else "full"
    return "contextual" if _is_follow_up(_Reading(text, said.lower(), cues), payload) else "full"


def _is_follow_up(reading: "_Reading", payload: bool) -> bool:
    words, cues = reading.words, reading.cues
    if reading.has(cues.breaks, within=8):
        return False
    if payload:
        return reading.opener_length() > 0 and not reading.asks_anew(reading.opener_length())
    if not reading.subject:
        return len(words) <= 15
    if len(words) > _LONG:
        return reading.refers_back() and reading.mostly_known()
    return (
        _goes_on(reading)
        or reading.refers_back()
        or reading.compares()
        or reading.edits()
        or reading.is_fragment()
        or reading.mentions_known()
        or reading.mostly_known()
        or (len(words) <= 3 and not reading.is_request())
    )


def _goes_on(reading: "_Reading") -> bool:
    opener = reading.opener_length()
    return opener > 0 and len(reading.words) <= 25 and not reading.asks_anew(opener)


@dataclass(frozen=True)
class _Reading:
    """A prompt with what was said before, read with the cues of its language. Texts are in lower case."""

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
        """Positions of the words that say what the prompt is about."""
        without = self.cues.subjectless()
        return [i for i, word in enumerate(self.words) if word.lstrip("-") not in without and word not in without]

    @cached_property
    def new(self) -> list[int]:
        """Positions of the subject's words that the conversation does not have."""
        return [i for i in self.subject if _stem(self.words[i]) not in self._known_stems]

    def _matches(self, phrases: frozenset[Phrase], position: int) -> int:
        """How many words the longest of the phrases at `position` has; 0 when none is there."""
        for length in range(min(5, len(self.words) - position), 0, -1):
            if tuple(self.words[position : position + length]) in phrases:
                return length
        return 0

    def has(self, phrases: frozenset[Phrase], within: int) -> bool:
        return any(self._matches(phrases, position) for position in range(min(within, len(self.words))))

    @cached_property
    def head(self) -> int:
        """Where the first word stands that is not mere politeness."""
        return next((i for i, word in enumerate(self.words) if word not in _POLITE), 0)

    def opener_length(self) -> int:
        """How many words open the prompt as something that goes on; 0 when it does not open like that."""
        return self._matches(self.cues.openers, 0) or (self._matches(self.cues.openers, self.head) and self.head + 1)

    def is_request(self, start: int | None = None) -> bool:
        """Whether a task or a question stands at the head, or at `start` after some politeness."""
        position = self.head if start is None else start
        while position < len(self.words) and start is not None and self.words[position] in _POLITE:
            position += 1
        # Some languages have the verb, and some the question word, at the end.
        positions = {position, len(self.words) - 1, len(self.words) - 2} | ({0} if start is None else set())
        return any(self._matches(self.cues.tasks | self.cues.questions, i) for i in positions if i >= 0)

    def asks_anew(self, start: int) -> bool:
        """Whether a task or question of its own follows from `start` on: new nouns, and nothing that refers back."""
        new = [i for i in self.new if i >= start]
        return len(new) >= 2 and self.is_request(start) and not self.refers_back(start) and not self.mentions_known()

    def refers_back(self, start: int = 0) -> bool:
        """Whether something is referred to before anything new has been named."""
        limit = self.new[0] if self.new else len(self.words)
        if self._names_a_part(start) or self._asks_about_it():
            return True
        for position in range(start, len(self.words)):
            length = self._matches(self.cues.references, position)
            if not length:
                continue
            before_new = position <= limit
            # `a query that lists`, `das Wetter`: a pronoun or an article of a noun of its own.
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
        """Whether a reference of several words (`your answer`, `step 2`) stands anywhere."""
        for position in range(start, len(self.words)):
            length = self._matches(self.cues.references, position)
            if length > 1 and "".join(self.words[position + length : position + length + 1]) not in _BELONGING:
                return True
        return False

    def _asks_about_it(self) -> bool:
        """Whether a question of one clause has a pronoun in it: `how much space does it need?`"""
        if not self._asks() or len(self.words) > 12 or "," in self.text:
            return False
        pronoun = next((i for i, word in enumerate(self.words) if word in _PRONOUNS), 0)
        return pronoun > 0 and _JOINING.isdisjoint(self.words[:pronoun])

    def compares(self) -> bool:
        """Whether it compares with what is there, and what is new only says in which way (`more dramatic`)."""
        degrees = [i for i in range(len(self.words)) if self._matches(self.cues.degrees, i)]
        if not degrees or any(i < degrees[0] for i in self.new):
            return False
        return len(self.new) <= (1 if self._asks() else 2)

    def _asks(self) -> bool:
        return self._matches(self.cues.questions, 0) > 0 or self._matches(self.cues.questions, self.head) > 0

    def edits(self) -> bool:
        """Whether it asks to change what is there; a verb that also orders new things must name nothing new."""
        if not self._matches(self.cues.edits, self.head) or len(self.words) > 18:
            return False
        allowed = 0 if self._matches(self.cues.tasks, self.head) else 2
        return len(self.new) <= allowed

    def is_fragment(self) -> bool:
        """Whether it is an addition that is no sentence: `for beginners`, `as a table`."""
        if not self._matches(self.cues.fragments, self.head) or len(self.words) > 8 or self._asks():
            return False
        return not any(
            self._matches(self.cues.questions | self.cues.tasks, i) for i in range(self.head + 2, len(self.words))
        )

    def mentions_known(self) -> bool:
        """Whether something from the conversation is named as known: `the function`, but not `the capital of Peru`."""
        for i in self.subject:
            if i in self.new or i == 0 or self.words[i - 1] not in _ARTICLES:
                continue
            follows = self.words[i + 1 : i + 2]
            if not follows or (follows[0] not in _BELONGING and i + 1 not in self.new):
                return True
        return False

    def mostly_known(self) -> bool:
        """Whether more than half of what it is about was said before; a task may be the same task once more."""
        known = len(self.subject) - len(self.new)
        if self.is_request():
            return self._asks() and known >= 2 and known > len(self.new)
        return known > len(self.new)


def _stem(word: str) -> str:
    return word.lstrip("-")[:5]
