"""CloudEvents in Kafka binary mode."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.contracts.contract import now_utc
from shared.contracts.documents import DocumentIndexed, DocumentSubmitted
from shared.contracts.topics import DOCUMENTS_INDEXED, DOCUMENTS_SUBMITTED
from shared.messaging.cloudevents import decode, encode
from shared.messaging.errors import Undecodable

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def submitted() -> DocumentSubmitted:
    return DocumentSubmitted(document_id="d", tenant_id="t", period="2026-11", occurred_at=now_utc())


def test_what_is_encoded_decodes_to_the_same() -> None:
    data = submitted()
    value, headers = encode(
        DOCUMENTS_SUBMITTED, data, source="rag", subject="upgrade", event_id="e1", traceparent=TRACEPARENT
    )
    envelope = decode(DOCUMENTS_SUBMITTED, value, headers)
    assert (envelope.event_id, envelope.type, envelope.source) == ("e1", "documents.submitted.v1", "rag")
    assert (envelope.subject, envelope.traceparent) == ("upgrade", TRACEPARENT)
    assert envelope.time is not None
    assert envelope.data.to_document() == data.to_document()
    assert dict(headers)["ce_dataschema"] == b"urn:prompt-upgrader:schema:documents.submitted.v1"


def test_subject_and_traceparent_may_be_absent_and_ids_are_new() -> None:
    (value, headers), (_, others) = (encode(DOCUMENTS_SUBMITTED, submitted(), source="rag") for _ in range(2))
    envelope = decode(DOCUMENTS_SUBMITTED, value, headers)
    assert envelope.subject is None
    assert envelope.traceparent is None
    assert dict(headers)["ce_id"] != dict(others)["ce_id"]


def test_unknown_fields_are_ignored() -> None:
    value, headers = encode(DOCUMENTS_SUBMITTED, submitted(), source="rag")
    newer = json.dumps(json.loads(value) | {"colour": "green"}).encode()
    assert decode(DOCUMENTS_SUBMITTED, newer, headers).data.to_json() == value


Change = Callable[[bytes, dict[str, bytes]], tuple[bytes | None, dict[str, Any]]]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda v, h: (v, h | {"ce_type": b"usage.recorded.v1"}), "ce_type is not documents.submitted.v1"),
        (lambda v, h: (v, h | {"ce_specversion": b"0.3"}), "ce_specversion is not 1.0"),
        (lambda v, h: (v, {"ce_type": h["ce_type"], "ce_id": b"1"}), "missing header: ce_specversion, ce_source"),
        (lambda v, h: (v, h | {"ce_id": b"\xff"}), "a CloudEvents header is malformed"),
        (lambda v, h: (v, h | {"ce_time": b"noon"}), "a CloudEvents header is malformed"),
        (lambda v, h: (v, {**h, "ce_id": None}), "a CloudEvents header is malformed"),  # Kafka allows null headers
        (lambda v, h: (b"\xff\xfe", h), "the value is not JSON"),
        (lambda v, h: (None, h), "the value is not JSON"),
        (lambda v, h: (b"[]", h), "schema violated at value: model_type"),
    ],
)
def test_an_invalid_event_is_undecodable_with_a_reason(change: Change, reason: str) -> None:
    value, headers = encode(DOCUMENTS_SUBMITTED, submitted(), source="rag")
    changed, changed_headers = change(value, dict(headers))
    with pytest.raises(Undecodable) as error:
        decode(DOCUMENTS_SUBMITTED, changed, list(changed_headers.items()))
    assert error.value.reason == reason


def test_the_reason_names_fields_and_never_values() -> None:
    _, headers = encode(DOCUMENTS_SUBMITTED, submitted(), source="rag")
    with pytest.raises(Undecodable) as error:
        decode(DOCUMENTS_SUBMITTED, b'{"documentId": 41111111, "tenantId": null}', headers)
    assert "documentId: string_type" in error.value.reason
    assert "4111" not in error.value.reason


@given(st.binary(max_size=200), st.lists(st.tuples(st.text(max_size=20), st.binary(max_size=20)), max_size=6))
def test_arbitrary_bytes_raise_only_undecodable(value: bytes, headers: list[tuple[str, bytes]]) -> None:
    with pytest.raises(Undecodable):
        decode(DOCUMENTS_SUBMITTED, value, headers)


def test_a_topic_rejects_events_of_another() -> None:
    value, headers = encode(DOCUMENTS_SUBMITTED, submitted(), source="rag")
    with pytest.raises(Undecodable):
        decode(DOCUMENTS_INDEXED, value, headers)
    assert DOCUMENTS_INDEXED.model is DocumentIndexed
