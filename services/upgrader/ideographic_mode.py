"""`mode` for Chinese and Japanese, which are written without spaces: cues are looked for anywhere in the text."""

import re

from services.upgrader.cue_tables import Cues, Phrase

_SIGN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff々]|[a-z0-9][a-z0-9.+#-]*")
_GOES_ON_AT_END = re.compile(r"(?:呢|は)[?？。！!\s]*$")
_POLITE_START = re.compile(r"^[\s、,，]*(?:请|請|现在|現在|麻烦|能不能|可以|帮我把|今度は|では|それでは)?[\s、,，]*")


def is_ideographic(language: str) -> bool:
    """Whether the language is written without spaces between its words."""
    return language.partition("-")[0] in ("zh", "ja")


def is_ideographic_follow_up(text: str, said: str, cues: Cues, payload: bool) -> bool:
    """The rules of `mode` for a text without spaces; both texts in lower case."""
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
    if (opener or _GOES_ON_AT_END.search(text)) and not (asks and len(new) >= 3) and length <= 30:
        return True
    if _first(cues.edits, text) is not None and len(new) <= (2 if asks else 6):
        return True
    return not asks and (length <= 4 or (_starts(cues.fragments, text) and length <= 8))


def _first(phrases: frozenset[Phrase], text: str) -> int | None:
    positions = [position for (cue,) in phrases if (position := text.find(cue)) != -1]
    return min(positions, default=None)


def _starts(phrases: frozenset[Phrase], text: str) -> bool:
    return any(text.startswith(cue) for (cue,) in phrases)


def _without_cues(text: str, cues: Cues) -> str:
    for cue in sorted(cues.subjectless(), key=len, reverse=True):
        text = text.replace(cue, " ")
    return text


def _new_signs(rest: str, said: str) -> list[str]:
    """Signs and Latin words of what is left that the conversation does not have."""
    return [sign for sign in _SIGN.findall(rest) if sign not in said]
