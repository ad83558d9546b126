"""Ids: time-ordered for new things, derived for things that must come out the same twice."""

import uuid

import uuid_utils

_NAMESPACE = uuid.UUID("6f1c1f7e-3d0c-5a51-9a0b-2f0f9f6f3c11")


def new_id() -> str:
    """A UUIDv7 (RFC 9562) in its canonical lower-case form."""
    return str(uuid_utils.uuid7())


def derived_id(*parts: str) -> str:
    """A UUIDv5 over the parts: the same parts give the same id, in any process."""
    return str(uuid.uuid5(_NAMESPACE, "\x1f".join(parts)))


def is_uuid(text: str) -> bool:
    """Whether `text` is a UUID in its canonical form."""
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False
