"""Labelled turns: prompts within conversations, each said to be a follow-up or the start of something new.

One line of a `.jsonl` file is a conversation: what was `said`, prompts that are `contextual` after it, and prompts that
are `full`. The first prompts of the other conversations of a language are new topics as well. Every third conversation
of a file is kept for the test; the weights of the hint are fitted to the others.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shared.contracts.upgrade_tasks import ConversationMessage

_FOLDER = Path(__file__).parent
_KEPT_OF = 3


@dataclass(frozen=True)
class Turn:
    """A prompt after a conversation."""

    prompt: str
    said: tuple[str, ...]
    language: str
    is_follow_up: bool

    @property
    def history(self) -> list[ConversationMessage]:
        return [
            ConversationMessage(role="assistant" if number % 2 else "user", content=text)
            for number, text in enumerate(self.said)
        ]


def labelled_turns(*, kept_for_test: bool) -> list[Turn]:
    """The turns to test with, or those to fit the weights to; no conversation is in both."""
    return [turn for path in sorted(_FOLDER.glob("??.jsonl")) for turn in _of_language(path, kept_for_test)]


def _of_language(path: Path, kept_for_test: bool) -> Iterator[Turn]:
    conversations = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    part = [c for number, c in enumerate(conversations) if (number % _KEPT_OF == _KEPT_OF - 1) is kept_for_test]
    for conversation in part:
        said, language = tuple(conversation["said"]), path.stem
        for prompt in conversation["contextual"]:
            yield Turn(prompt, said, language, True)
        openings = [other["said"][0] for other in part if other is not conversation]
        for prompt in [*conversation["full"], *openings]:
            yield Turn(prompt, said, language, False)
