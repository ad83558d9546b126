"""Bounds on the tokens that the model stages read and write.

The gateway holds quota by these bounds before it accepts an upgrade; the stages ask the model within them. No
tokenizer is used: a text's bound is a sum of weights of its UTF-8 bytes, fitted to OpenAI's o200k vocabulary. For
ordinary text it is at least the count and on average 1.4 times the count.
"""

import math
from collections.abc import Sequence

RECENT_MESSAGES = 6
RECENT_MESSAGE_CHARACTERS = 4_000
"""The rewriter reads the last messages of a conversation as they are, each at most this long."""
SUMMARY_MESSAGES = 10
"""The summarizer reads at most the last messages of a conversation, and its summary of the earlier ones."""

REWRITE_FRAME_TOKENS = 1_350
"""Instructions of the rewrite, the schema of its answer, section markers, mode and language."""
SUMMARY_FRAME_TOKENS = 560
"""Instructions of the summary, the schema of its answer and section markers."""
CHUNK_CHARACTERS = 1_200
"""A retrieved chunk with its headings and title."""
QUERY_CHARACTERS = 2_000
"""A query of the search is cut down to this."""

_ANSWER_FRAME_TOKENS = 400
"""Everything but the upgraded prompt in an answer: reasoning, questions, field names."""
_FULL_EXTRA, _CONTEXTUAL_EXTRA, _FACTOR = 3_500, 1_200, 3
_LEAST_TOKENS_PER_CHARACTER = 0.3
_LEAST_TOKENS_PER_CHUNK_CHARACTER = 0.4
_TEXT_FRAME_TOKENS = 3
_UNITS_PER_TOKEN = 100


def _units(byte: int) -> int:
    """The weight of a byte in hundredths of a token. Of a longer sequence the first byte has the whole weight."""
    character = chr(byte)
    if byte < 0x80:
        if character.islower():
            return 33
        if character.isupper():
            return 40
        if character.isdigit():
            return 80
        return 5 if character == " " else 75
    if byte < 0xC0:  # continuation bytes
        return 0
    if byte < 0xCA:  # Latin letters with marks
        return 100
    if byte < 0xE0:  # Greek, Cyrillic, Hebrew, Arabic
        return 45
    if byte < 0xF0:  # Indic scripts, Vietnamese letters, symbols, CJK
        return 100
    return 250  # emoji and rare scripts


_WEIGHTS = bytes(_units(byte) for byte in range(256))


def token_bound(text: str) -> int:
    """At least the tokens of `text`, for ordinary text. Linear in its length, some microseconds per KB."""
    return math.ceil(_weight(text)) + _TEXT_FRAME_TOKENS


def _weight(text: str) -> float:
    return sum(text.encode("utf-8", "replace").translate(_WEIGHTS)) / _UNITS_PER_TOKEN


def fits_the_rewrite(messages: Sequence[str]) -> bool:
    """Whether the rewriter reads a conversation of these messages completely, so that a summary adds nothing."""
    return len(messages) <= RECENT_MESSAGES and all(len(text) <= RECENT_MESSAGE_CHARACTERS for text in messages)


def longest_full_upgrade(prompt_characters: int) -> int:
    """The most characters that an upgraded prompt on a topic of its own may have."""
    return _FULL_EXTRA + _FACTOR * prompt_characters


def longest_contextual_upgrade(prompt_characters: int, longest_message: int) -> int:
    """The most characters that an upgraded follow-up may have: it may include one earlier message."""
    return _CONTEXTUAL_EXTRA + _FACTOR * prompt_characters + longest_message


def rewrite_answer_tokens(prompt: str, messages: Sequence[str]) -> int:
    """The tokens of the longest answer to `prompt` that passes the checks, in the language of the prompt."""
    density = max(_LEAST_TOKENS_PER_CHARACTER, _weight(prompt) / max(1, len(prompt)))
    full = density * longest_full_upgrade(len(prompt))
    message = max((_weight(text) for text in messages), default=0.0)
    contextual = density * longest_contextual_upgrade(len(prompt), 0) + message
    return math.ceil(max(full, contextual)) + _ANSWER_FRAME_TOKENS


def chunk_tokens(prompt: str) -> int:
    """The tokens of one retrieved chunk, in the language of the prompt."""
    density = max(_LEAST_TOKENS_PER_CHUNK_CHARACTER, _weight(prompt) / max(1, len(prompt)))
    return math.ceil(density * CHUNK_CHARACTERS)


def query_tokens(text: str) -> int:
    """The bound of a search's query."""
    return token_bound(text[:QUERY_CHARACTERS])


def clipped_bound(text: str, characters: int) -> int:
    """The bound of `text` cut down to a number of characters, as the rewriter cuts long messages."""
    if len(text) <= characters:
        return token_bound(text)
    half = characters // 2
    return token_bound(text[:half]) + token_bound(text[-half:])
