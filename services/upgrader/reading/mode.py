"""Guesses whether a prompt starts a new topic (`full`) or continues the conversation (`contextual`).

The guess is a hint: the model that rewrites the prompt decides. Rules decide the clear cases: no conversation, a phrase
that announces a new topic (`new topic`), a prompt without a subject (`why?`), and a prompt that contains its own text.
A logistic regression over the features of `mode_features.py` decides the others. Its weights are in
`mode_weights.json`, fitted to labelled turns by `python -m tests.turns.fit`.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from services.upgrader.reading.cues import cues_for, is_ideographic
from services.upgrader.reading.language import detect_language
from services.upgrader.reading.mode_features import Reading, features_of, ideographic_goes_on
from shared.contracts.upgrade_results import Mode
from shared.contracts.upgrade_tasks import ConversationMessage

_MAX_MESSAGES = 6
_MAX_CHARACTERS = 4_000
_MOST_WORDS_WITHOUT_SUBJECT = 15
_SURE = 0.95
_PAYLOAD = re.compile(r"```.*?(?:```|$)|\"[^\"\n]{25,}\"|“[^”\n]{25,}”|«[^»\n]{25,}»|(?<=:)\s*\n.{60,}", re.DOTALL)
_ADDRESS = re.compile(r"https?://\S+")


@dataclass(frozen=True)
class ModeHint:
    """`probability` is the estimated probability of a follow-up, 0 to 1."""

    mode: Mode
    probability: float

    @property
    def is_sure(self) -> bool:
        """Whether the other mode can be ruled out."""
        return max(self.probability, 1 - self.probability) >= _SURE


_FULL, _CONTEXTUAL = ModeHint("full", 0.0), ModeHint("contextual", 1.0)


def guess_mode(prompt: str, history: Sequence[ConversationMessage], language: str | None = None) -> ModeHint:
    """The hint for `prompt` after `history`. `language` is the prompt's BCP 47 tag; it is detected if None."""
    turns = [message.content for message in history if message.role != "system" and message.content.strip()]
    if not turns:
        return _FULL
    said = [turn[-_MAX_CHARACTERS:] for turn in turns[-_MAX_MESSAGES:]]
    language = language or detect_language(prompt, history)
    payload = _PAYLOAD.search(prompt) is not None
    text = _ADDRESS.sub(" ", _PAYLOAD.sub(" ", prompt)).replace("’", "'")
    reading = Reading(text.lower(), "\n".join(said).lower(), cues_for(language))
    if payload:
        goes_on = ideographic_goes_on(reading, True) if is_ideographic(language) else _repeats_the_task(reading)
        return _CONTEXTUAL if goes_on else _FULL
    if reading.breaks_off():
        return _FULL
    if not is_ideographic(language) and not reading.subject:
        return _CONTEXTUAL if len(reading.words) <= _MOST_WORDS_WITHOUT_SUBJECT else _FULL
    return _weighed(features_of(text, reading, language))


def _repeats_the_task(reading: Reading) -> bool:
    """Whether a prompt with its own text is a follow-up: only if it asks for the same task again."""
    opener = reading.opener_length()
    return opener > 0 and not reading.asks_anew(opener)


def _weighed(features: dict[str, float]) -> ModeHint:
    weights = _weights()
    score = weights["bias"] + sum(weights.get(name, 0.0) * value for name, value in features.items())
    probability = 1 / (1 + math.exp(-score))
    return ModeHint("contextual" if score > weights["threshold"] else "full", probability)


@cache
def _weights() -> dict[str, float]:
    weights: dict[str, float] = json.loads((Path(__file__).parent / "mode_weights.json").read_text(encoding="utf-8"))
    return weights
