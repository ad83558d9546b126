"""Records a trace span and metrics for each model call, without its texts."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from opentelemetry.trace import Status, StatusCode

from shared.llm.errors import ModelError, ModelTimeout
from shared.llm.sending import Call
from shared.llm.usage import count_usage
from shared.observability.tracing import tracer


@dataclass
class Outcome:
    """The outcome of a running call. `repaired` is set once an unusable answer was asked for again."""

    repaired: bool = False


@contextmanager
def measured(call: Call) -> Iterator[Outcome]:
    """Wraps one call in a span with its outcome, and counts its tokens and cost. Exceptions pass through."""
    outcome = Outcome()
    label = "ok"
    attributes = {"gen_ai.operation.name": call.operation, "gen_ai.request.model": call.spending.model}
    with tracer().start_as_current_span(
        f"model.{call.operation}", attributes=attributes, record_exception=False, set_status_on_exception=False
    ) as span:
        try:
            yield outcome
            label = "repaired" if outcome.repaired else "ok"
        except ModelError as error:
            label = "model_timeout" if isinstance(error, ModelTimeout) else error.code
            span.set_status(Status(StatusCode.ERROR, label))
            raise
        except asyncio.CancelledError:
            label = "cancelled"
            raise
        except BaseException:
            label = "internal_error"
            span.set_status(Status(StatusCode.ERROR, label))
            raise
        finally:
            usage = call.spending.usage()
            if span.is_recording():
                span.set_attribute("gen_ai.response.model", usage.model)
                span.set_attribute("gen_ai.usage.input_tokens", usage.tokens_in)
                span.set_attribute("gen_ai.usage.output_tokens", usage.tokens_out)
                span.set_attribute("model.attempts", usage.attempts)
                span.set_attribute("model.outcome", label)
            count_usage(call.operation, usage)
