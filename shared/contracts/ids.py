"""Ids: time-ordered for new things, derived for things that must come out the same twice."""

import uuid
from datetime import datetime

import uuid_utils

_NAMESPACE = uuid.UUID("6f1c1f7e-3d0c-5a51-9a0b-2f0f9f6f3c11")


def new_id() -> str:
    """A UUIDv7 (RFC 9562) in its canonical lower-case form."""
    return str(uuid_utils.uuid7())


def derived_id(*parts: str) -> str:
    """A UUIDv5 over the parts: the same parts give the same id, in any process."""
    return str(uuid.uuid5(_NAMESPACE, "\x1f".join(parts)))


def id_floor(moment: datetime) -> str:
    """The least UUIDv7 of a moment: ids made later are greater."""
    digits = f"{round(moment.timestamp() * 1000):012x}"
    return f"{digits[:8]}-{digits[8:]}-0000-0000-000000000000"


def is_uuid(text: str) -> bool:
    """Whether `text` is a UUID in its canonical form."""
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False
