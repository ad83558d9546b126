"""The building blocks of all messages and HTTP bodies: the base model, timestamps, periods, ids and money."""

import uuid
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any

import uuid_utils
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, PlainSerializer
from pydantic.alias_generators import to_camel

_NAMESPACE = uuid.UUID("6f1c1f7e-3d0c-5a51-9a0b-2f0f9f6f3c11")


class Contract(BaseModel):
    """A camelCase JSON object. Readers ignore fields they do not know: within a version, changes only add."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        extra="ignore",
        frozen=True,
        protected_namespaces=(),
    )

    def to_json(self) -> bytes:
        """The object as UTF-8 JSON with camelCase names."""
        return self.model_dump_json(by_alias=True).encode()

    def to_document(self) -> dict[str, Any]:
        """The object as JSON-ready Python values with camelCase names."""
        return self.model_dump(mode="json", by_alias=True)


def format_utc(moment: datetime) -> str:
    """RFC 3339 in UTC with milliseconds, for instance `2026-11-23T15:04:05.123Z`."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _in_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("is out of range in UTC") from None


Timestamp = Annotated[
    AwareDatetime, AfterValidator(_in_utc), PlainSerializer(format_utc, return_type=str, when_used="json")
]
"""A moment: any offset is accepted, and written as `format_utc` does."""


def now_utc() -> datetime:
    return datetime.now(UTC)


def period_of(moment: datetime) -> str:
    """The UTC calendar month of a moment, as `YYYY-MM`."""
    return moment.astimezone(UTC).strftime("%Y-%m")


def new_id() -> str:
    """A new UUIDv7 (RFC 9562) in its canonical lower-case form."""
    return str(uuid_utils.uuid7())


def derived_id(*parts: str) -> str:
    """The UUIDv5 of the parts: the same parts have the same id in every process."""
    return str(uuid.uuid5(_NAMESPACE, "\x1f".join(parts)))


def id_floor(moment: datetime) -> str:
    """A lower bound for the UUIDv7s of a moment: ids made then or later are greater, ids made earlier are less."""
    digits = f"{round(moment.timestamp() * 1000):012x}"
    return f"{digits[:8]}-{digits[8:]}-0000-0000-000000000000"


def is_uuid(text: str) -> bool:
    """Whether `text` is a UUID in its canonical form, in either case."""
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False


def format_usd(nano_usd: int) -> str:
    """Nano-dollars as a decimal string of dollars with nine places."""
    return f"{Decimal(nano_usd).scaleb(-9):.9f}"
