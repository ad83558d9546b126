"""Masks personal and secret values in logs, error reports and spans.

A second line of defence: callers must not log content in the first place.
"""

import re
from collections.abc import Mapping
from typing import Any

MASK = "[removed]"
_MAX_TEXT = 2000  # characters
_MAX_DEPTH = 6
_MAX_ITEMS = 100
_MAX_MESSAGE = 500  # characters
_MAX_PLACES = 5

_SECRET_KEY = re.compile(
    r"(passw|secret|authorization|cookie|credential|signature|api[-_]?key|vault[-_]?key|private[-_]?key|demo[-_]?key"
    r"|dsn$|jwt|token$)",
    re.IGNORECASE,
)
_CONTENT_KEYS = frozenset(
    {
        "answer", "body", "content", "conversation", "conversationhistory", "data", "document", "documents", "email",
        "filename", "history", "input", "messages", "ownervalue", "phone", "placeholders", "prompt", "query",
        "reasoning", "text", "title", "upgradedprompt", "userid", "username", "userprompt", "value", "vars",
    }
)  # fmt: skip

_VALUE_PATTERNS = (
    re.compile(r"(?<=://)[^/\s:@]*:[^/\s@]+(?=@)"),
    re.compile(r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})+"),
    re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?"),
    re.compile(r"\b(?:sk|pk|pu|ghp|gho|xox[abp]|AKIA|ASIA)[-_]?[A-Za-z0-9_-]{16,}"),
    re.compile(r"(?i)\b(?:bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}"),
    re.compile(r"(?i)\b(?:password|passwd|secret|api[-_]?key|token)\s*[=:]\s*\S+"),
    re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?\b"),
    # Cards and phone numbers: groups of digits with separators. A run of digits without separators may be an offset
    # and is kept, except at the length of a card number.
    re.compile(r"(?<![\w.-])\+?\d{1,4}(?:[ .-]\(?\d{2,4}\)?){2,5}(?![\w-])"),
    re.compile(r"(?<![\w.-])\d{15,19}(?![\w-])"),
)


def is_sensitive(key: str) -> bool:
    """Whether a field with that name may hold content or a secret."""
    return key.replace("_", "").replace("-", "").lower() in _CONTENT_KEYS or _SECRET_KEY.search(key) is not None


def scrub_text(text: str) -> str:
    """Returns `text` with personal and secret values masked, truncated to 2,000 characters."""
    if len(text) > _MAX_TEXT:
        text = text[:_MAX_TEXT] + "…"
    for pattern in _VALUE_PATTERNS:
        text = pattern.sub(MASK, text)
    return text


def scrub(value: Any, depth: int = 0) -> Any:
    """Returns a copy of a JSON-like value with sensitive fields and values masked.

    Values of other types become scrubbed text, those nested too deeply the mask, and long lists are truncated.
    """
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return scrub_text(value)
    if depth >= _MAX_DEPTH:
        return MASK
    if isinstance(value, Mapping):
        return {
            str(key): MASK if is_sensitive(str(key)) and item not in (None, "") else scrub(item, depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [scrub(item, depth + 1) for item in list(value)[:_MAX_ITEMS]]
    return scrub_text(str(value))


def describe_exception(error: BaseException) -> str:
    """Returns class and scrubbed message on one line. For a validation error, whose text quotes input: only fields."""
    places = getattr(error, "errors", None)
    if callable(places) and type(error).__name__.endswith("ValidationError"):
        try:
            found = [
                f"{'.'.join(str(part) for part in item['loc'])} ({item['type']})" for item in places()[:_MAX_PLACES]
            ]
        except Exception:
            return type(error).__name__
        return f"{type(error).__name__}: {', '.join(found)}"
    message = " ".join(scrub_text(str(error)).split())[:_MAX_MESSAGE]
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
