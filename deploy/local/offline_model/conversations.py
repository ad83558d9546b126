"""Reading a conversation: who said what, and which message stands on its own."""

import re
from dataclasses import dataclass

from deploy.local.offline_model.languages import Language
from deploy.local.offline_model.passages import asks
from deploy.local.offline_model.text_pieces import split_sentences, words

_TURN = re.compile(r"(?:\A|\n\n)(user|assistant|system): ")
_SHORT = 14


@dataclass(frozen=True)
class Turn:
    """One message."""

    role: str
    text: str


def read_conversation(section: str) -> list[Turn]:
    """The messages of a `conversation` section in order."""
    starts = list(_TURN.finditer(section))
    ends = [match.start() for match in starts[1:]] + [len(section)] if starts else []
    turns = [Turn(s.group(1), section[s.end() : end].strip()) for s, end in zip(starts, ends, strict=True)]
    return [turn for turn in turns if turn.text]


def is_follow_up(text: str, language: Language | None) -> bool:
    """Whether a message leans on an earlier one, so that it says little by itself."""
    size = len(text.split())
    if language is None:
        return len(words(text)) <= 6
    if size > _SHORT:
        return False
    if language.pattern["follow_up"].match(text.strip()):
        return True
    has_goal = any(pattern.search(text) for pattern in language.table["goals"].values())
    if language.pattern["pronoun"].search(text) and len(words(text, language.stopword_set)) <= 4:
        return True
    return not has_goal and size <= 3


def last_request(turns: list[Turn], language: Language | None) -> tuple[str | None, list[str]]:
    """The latest user message that asks for something and stands on its own, and the user messages after it.

    None and all user messages when none does.
    """
    asked = [turn.text for turn in turns if turn.role == "user"]
    for index in range(len(asked) - 1, -1, -1):
        text = asked[index]
        if not is_follow_up(text, language) and any(asks(sentence, language) for sentence in split_sentences(text)):
            return text, asked[index + 1 :]
    return None, asked


def main_sentences(text: str, language: Language | None, limit: int = 3) -> list[str]:
    """What a message asks for: its sentences with a goal or a question, else its first one."""
    sentences = [sentence for sentence in split_sentences(text) if not sentence.startswith("```")]
    asking = [sentence for sentence in sentences if asks(sentence, language)] if language else []
    return (asking or sentences or [text])[:limit]
