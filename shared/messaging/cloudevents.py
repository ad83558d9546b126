"""Encodes and decodes CloudEvents 1.0 in Kafka binary mode: attributes in `ce_*` headers, JSON data in the value."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

from pydantic import ValidationError

from shared.contracts.contract import Contract, format_utc, new_id, now_utc
from shared.contracts.topics import Topic
from shared.messaging.errors import Undecodable

Headers = Sequence[tuple[str, bytes]]

_REQUIRED = ("ce_specversion", "ce_id", "ce_source", "ce_type")
_ERRORS_NAMED = 5


@dataclass(slots=True)
class Envelope:
    """One decoded event. `data` is an instance of the topic's model; `traceparent` is the W3C header, not validated."""

    event_id: str
    type: str
    source: str
    subject: str | None
    time: datetime | None
    traceparent: str | None
    data: Contract


def encode(
    topic: Topic,
    data: Contract | bytes,
    *,
    source: str,
    subject: str | None = None,
    event_id: str | None = None,
    traceparent: str | None = None,
) -> tuple[bytes, list[tuple[str, bytes]]]:
    """Returns the record's value and headers. `data` is a contract or its JSON; `event_id` defaults to a new id."""
    headers = [
        *_fixed_headers(topic, source),
        ("ce_id", (event_id or new_id()).encode()),
        ("ce_time", format_utc(now_utc()).encode()),
    ]
    if subject is not None:
        headers.append(("ce_subject", subject.encode()))
    if traceparent is not None:
        headers.append(("traceparent", traceparent.encode()))
    return data if isinstance(data, bytes) else data.to_json(), headers


def decode(topic: Topic, value: bytes | None, headers: Headers) -> Envelope:
    """Returns the event of a record. Raises Undecodable for a missing header, wrong type or invalid data."""
    return decoder(topic)(value, headers)


@cache
def decoder(topic: Topic) -> "Decoder":
    return Decoder(topic)


class Decoder:
    """Decodes the records of one topic. Built once per topic, since decoding runs for every message."""

    def __init__(self, topic: Topic) -> None:
        if topic.model is None:
            raise ValueError(f"{topic.name} carries no events")
        self._type = topic.name
        self._type_bytes = topic.name.encode()
        self._parse = topic.model.__pydantic_validator__.validate_json

    def __call__(self, value: bytes | None, headers: Headers) -> Envelope:
        found = dict(headers)
        try:
            event_id, source = found["ce_id"], found["ce_source"]
            if found["ce_type"] != self._type_bytes or found["ce_specversion"] != b"1.0":
                raise Undecodable(_mismatch(found, self._type))
            subject, time, traceparent = found.get("ce_subject"), found.get("ce_time"), found.get("traceparent")
            return Envelope(
                event_id.decode(),
                self._type,
                source.decode(),
                subject.decode() if subject is not None else None,
                datetime.fromisoformat(time.decode()) if time is not None else None,
                traceparent.decode() if traceparent is not None else None,
                self._parse(value if value is not None else b""),
            )
        except KeyError:
            missing = ", ".join(name for name in _REQUIRED if name not in found)
            raise Undecodable(f"missing header: {missing}") from None
        except ValidationError as error:
            raise Undecodable(_schema_violations(error)) from None
        except (ValueError, AttributeError):
            # A null header, one that is not UTF-8, or an invalid ce_time.
            raise Undecodable("a CloudEvents header is malformed") from None


@cache
def _fixed_headers(topic: Topic, source: str) -> tuple[tuple[str, bytes], ...]:
    return (
        ("ce_specversion", b"1.0"),
        ("ce_type", topic.name.encode()),
        ("ce_source", source.encode()),
        ("ce_dataschema", f"urn:prompt-upgrader:schema:{topic.name}".encode()),
        ("content-type", b"application/json"),
    )


def _mismatch(found: dict[str, bytes], expected: str) -> str:
    if found["ce_specversion"] != b"1.0":
        return "ce_specversion is not 1.0"
    return f"ce_type is not {expected}"


def _schema_violations(error: ValidationError) -> str:
    """The violated rules by field, without values."""
    details: list[Any] = error.errors(include_url=False, include_context=False, include_input=False)
    if details and details[0]["type"] == "json_invalid":
        return "the value is not JSON"
    named = [f"{'.'.join(str(part) for part in item['loc']) or 'value'}: {item['type']}" for item in details]
    more = f" and {len(named) - _ERRORS_NAMED} more" if len(named) > _ERRORS_NAMED else ""
    return "schema violated at " + "; ".join(named[:_ERRORS_NAMED]) + more
