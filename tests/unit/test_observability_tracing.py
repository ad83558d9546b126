from collections.abc import Iterator

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from shared.observability import tracing
from shared.observability.tracing import current_trace_id, current_traceparent, span_from_traceparent, tracer

SAMPLED = f"00-{'1' * 32}-{'2' * 16}-01"
UNSAMPLED = f"00-{'1' * 32}-{'2' * 16}-00"


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    tracing.configure_tracing("example", None, 1.0, exporter)
    yield exporter
    tracing.shutdown_tracing()


def test_without_an_endpoint_nothing_is_recorded_and_ids_are_passed_on() -> None:
    assert tracing.configure_tracing("example", None, 1.0) is False
    with span_from_traceparent("work", SAMPLED) as span:
        assert span is None
        assert current_traceparent() == SAMPLED
        assert not tracer().start_span("inner").is_recording()
    assert current_traceparent() is None


def test_a_new_unit_of_work_has_a_trace_id() -> None:
    with span_from_traceparent("work", None):
        outer = current_traceparent()
        assert outer is not None
        assert outer.endswith("-00")
        assert current_trace_id() == outer[3:35]
    with span_from_traceparent("work", None):
        assert current_traceparent() != outer


@pytest.mark.parametrize("header", ["", "garbage", "00-" + "0" * 32 + "-" + "2" * 16 + "-01", SAMPLED.upper() + "x"])
def test_a_malformed_header_starts_a_new_trace(header: str) -> None:
    with span_from_traceparent("work", header):
        given = current_traceparent()
        assert given is not None
        assert given[3:35] not in header or not header


def test_a_sampled_parent_gets_a_child(exporter: InMemorySpanExporter) -> None:
    with span_from_traceparent("work", SAMPLED, {"topic": "a.v1"}) as span:
        assert span is not None
        sent = current_traceparent()
        with tracer().start_as_current_span("inner"):
            pass
    inner, work = exporter.get_finished_spans()
    assert work.name == "work"
    assert work.attributes == {"topic": "a.v1"}
    assert work.parent is not None
    assert f"{work.parent.span_id:016x}" == "2" * 16
    assert inner.parent is not None
    assert work.context is not None
    assert inner.parent.span_id == work.context.span_id
    assert sent == f"00-{'1' * 32}-{work.context.span_id:016x}-01"


def test_an_unsampled_parent_gets_no_span_and_no_children(exporter: InMemorySpanExporter) -> None:
    with span_from_traceparent("work", UNSAMPLED) as span:
        assert span is None
        assert current_traceparent() == UNSAMPLED
        with tracer().start_as_current_span("client call"):
            pass
    assert exporter.get_finished_spans() == ()
    assert not trace.get_current_span().get_span_context().is_valid


def test_the_ratio_determines_which_new_traces_are_sampled() -> None:
    exporter = InMemorySpanExporter()
    for ratio, expected in ((0.0, 0), (1.0, 20)):
        exporter.clear()
        tracing.configure_tracing("example", None, ratio, exporter)
        for _ in range(20):
            with span_from_traceparent("work", None):
                pass
        assert len(exporter.get_finished_spans()) == expected
        exporter.clear()
        exporter = InMemorySpanExporter()
    tracing.shutdown_tracing()


def test_a_failed_unit_of_work_is_marked_without_its_content(exporter: InMemorySpanExporter) -> None:
    with pytest.raises(ValueError, match="jane"), span_from_traceparent("work", SAMPLED):
        raise ValueError("jane.doe@example.com is wrong")
    (span,) = exporter.get_finished_spans()
    assert span.status.status_code is trace.StatusCode.ERROR
    assert span.events == ()
    assert "jane" not in str(span.status.description)


async def test_spans_of_http_calls_hold_no_query(exporter: InMemorySpanExporter) -> None:
    answering = httpx.MockTransport(lambda request: httpx.Response(200))
    async with httpx.AsyncClient(transport=answering) as client:
        HTTPXClientInstrumentor.instrument_client(
            client, tracer_provider=tracing._provider, request_hook=tracing.leave_out_query
        )
        with span_from_traceparent("work", SAMPLED):
            await client.get("http://rag/internal/documents?title=ann%40example.org")
    call = next(span for span in exporter.get_finished_spans() if span.name == "GET")
    assert call.attributes is not None
    assert call.attributes["http.url"] == "http://rag/internal/documents"
    assert "example.org" not in call.to_json()
