"""Distributed tracing: passes W3C `traceparent` headers on, and exports spans over OTLP/HTTP if configured.

Every unit of work has a trace id, so that the log lines of an upgrade can be found in all services. Spans are recorded
only for sampled traces. Most messages are not, so the header's flag is checked before OpenTelemetry is called.
"""

import random
import re
from collections.abc import Mapping
from contextvars import ContextVar, Token
from types import TracebackType
from typing import TYPE_CHECKING, Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from shared.observability.scrubbing import describe_exception

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

Attributes = Mapping[str, str | bool | int | float]

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_LENGTH = 55
_received: ContextVar[str | None] = ContextVar("received_traceparent", default=None)

_provider: "TracerProvider | None" = None
_tracer: trace.Tracer = trace.NoOpTracer()
_sample_ratio = 0.0


def configure_tracing(service: str, endpoint: str | None, ratio: float, exporter: "SpanExporter | None" = None) -> bool:
    """Starts recording spans if there is an endpoint or an exporter. Returns whether spans are recorded.

    `ratio` is the share of new traces that are sampled.
    """
    global _provider, _tracer, _sample_ratio
    shutdown_tracing()
    if endpoint is None and exporter is None:
        return False
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    _provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(ratio)),
        resource=Resource({"service.name": service, "service.namespace": "prompt-upgrader"}),
        shutdown_on_exit=False,
    )
    if exporter is not None:
        _provider.add_span_processor(SimpleSpanProcessor(exporter))
    elif endpoint is not None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        address = endpoint.rstrip("/")
        address = address if address.endswith("/v1/traces") else address + "/v1/traces"
        _provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=address, timeout=5)))
    _tracer = _provider.get_tracer("prompt_upgrader")
    _sample_ratio = ratio
    return True


def instrument_clients() -> None:
    """Adds spans for calls through httpx, redis and pymongo, if spans are recorded."""
    if _provider is None:
        return
    from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
    from opentelemetry.instrumentation.pymongo import PymongoInstrumentor
    from opentelemetry.instrumentation.redis import RedisInstrumentor

    options: dict[str, Any] = {"tracer_provider": _provider, "async_request_hook": leave_out_query}
    for instrumentor in (HTTPXClientInstrumentor(), RedisInstrumentor(), PymongoInstrumentor()):
        if not instrumentor.is_instrumented_by_opentelemetry:
            instrumentor.instrument(**options)


async def leave_out_query(span: trace.Span, request: Any) -> None:
    """Removes the query from the URL in a span, since it may hold titles and file names."""
    span.set_attribute("http.url", str(request.url).partition("?")[0])


def shutdown_tracing() -> None:
    """Sends buffered spans and stops recording. Blocks up to the exporter's time-out."""
    global _provider, _tracer, _sample_ratio
    provider, _provider, _tracer, _sample_ratio = _provider, None, trace.NoOpTracer(), 0.0
    if provider is not None:
        provider.shutdown()


def tracer() -> trace.Tracer:
    """Returns the tracer for spans inside a unit of work. It does nothing while spans are not recorded."""
    return _tracer


def current_traceparent() -> str | None:
    """Returns the `traceparent` to pass on, or None outside a unit of work."""
    current = trace.get_current_span().get_span_context()
    if current.is_valid:
        return f"00-{current.trace_id:032x}-{current.span_id:016x}-{current.trace_flags & 0x01:02x}"
    return _received.get()


def current_trace_id() -> str | None:
    """Returns the trace id as 32 hex digits, or None outside a unit of work."""
    current = trace.get_current_span().get_span_context()
    if current.is_valid:
        return f"{current.trace_id:032x}"
    received = _received.get()
    return None if received is None else received[3:35]


def span_from_traceparent(
    name: str,
    traceparent: str | None,
    attributes: Attributes | None = None,
    kind: SpanKind = SpanKind.INTERNAL,
) -> "_WorkSpan":
    """Returns a context manager for one unit of work that was received with `traceparent`.

    A missing or malformed header starts a new trace. Entering returns the span, or None if the trace is not sampled.
    """
    return _WorkSpan(name, traceparent, attributes, kind)


class _WorkSpan:
    """See `span_from_traceparent`. A class, since a generator is slower and this runs for every message."""

    __slots__ = ("_attached", "_attributes", "_kind", "_name", "_reset_token", "_span", "_traceparent")

    def __init__(self, name: str, traceparent: str | None, attributes: Attributes | None, kind: SpanKind) -> None:
        if traceparent is not None and (len(traceparent) != _LENGTH or not _TRACEPARENT.fullmatch(traceparent)):
            traceparent = None
        self._name = name
        self._traceparent = traceparent
        self._attributes = attributes
        self._kind = kind
        self._span: trace.Span | None = None
        self._attached: Any = None
        self._reset_token: Token[str | None] | None = None

    def __enter__(self) -> trace.Span | None:
        traceparent = self._traceparent or _unsampled_root()
        self._reset_token = _received.set(traceparent)
        if _provider is None:
            return None
        parent = trace.set_span_in_context(NonRecordingSpan(_span_context(traceparent)), otel_context.Context())
        if self._traceparent is None and random.random() < _sample_ratio:  # noqa: S311
            parent = otel_context.Context()
        elif not int(traceparent[53:], 16) & 1:
            # Instrumented clients record no spans under an unsampled parent.
            self._attached = otel_context.attach(parent)
            return None
        span = _tracer.start_span(self._name, context=parent, kind=self._kind, attributes=self._attributes)
        self._span = span
        self._attached = otel_context.attach(trace.set_span_in_context(span, parent))
        return span

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        if self._attached is not None:
            otel_context.detach(self._attached)
        if self._span is not None:
            if isinstance(error, Exception):
                # Not record_exception: its stack and message may quote content.
                self._span.set_status(Status(StatusCode.ERROR, describe_exception(error)))
            self._span.end()
        if self._reset_token is not None:
            _received.reset(self._reset_token)


def _unsampled_root() -> str:
    return f"00-{random.getrandbits(128) | 1:032x}-{random.getrandbits(64) | 1:016x}-00"


def _span_context(traceparent: str) -> SpanContext:
    return SpanContext(
        trace_id=int(traceparent[3:35], 16),
        span_id=int(traceparent[36:52], 16),
        is_remote=True,
        trace_flags=TraceFlags(int(traceparent[53:], 16) & 1),
    )
