"""Structured logging: one JSON object per line on stdout, for our own loggers and for those of libraries."""

import logging
import sys
import traceback
from collections.abc import Callable
from typing import Any, cast

import orjson
import structlog
from structlog.typing import EventDict, WrappedLogger

from shared.observability import tracing
from shared.observability.scrubbing import MASK, describe_exception, is_sensitive, scrub

ErrorReporter = Callable[[str, BaseException | None, EventDict], None]

_UNTOUCHED = frozenset({"time", "level", "service", "event", "trace_id", "logger", "error", "stack"})
_QUIET_LIBRARIES = ("httpx", "httpcore", "aiokafka", "kafka", "openai", "asyncio", "uvicorn", "sentry_sdk", "pymongo")
_MAX_FRAMES = 20

_service = "-"
_report_error: ErrorReporter | None = None


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """Returns a logger that adds `logger: name`. Can be created at import time, before `configure_logs`."""
    return cast(structlog.stdlib.BoundLogger, structlog.get_logger(name))


def configure_logs(service: str, level: str, report_error: ErrorReporter | None = None) -> None:
    """Configures logging of the process. `report_error(message, exception, fields)` is called for each logged error."""
    global _service, _report_error
    _service, _report_error = service, report_error
    threshold = logging.getLevelNamesMapping()[level]
    structlog.configure(
        processors=[*_shared_processors(), _render],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=_StdoutLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(_CurrentStdout())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_shared_processors(),
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _render],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(threshold)
    for library in _QUIET_LIBRARIES:
        logging.getLogger(library).setLevel(max(threshold, logging.WARNING))
    logging.captureWarnings(True)


class _CurrentStdout:
    """Writes to the current `sys.stdout`, which may be replaced after logging is configured."""

    def write(self, text: str) -> int:
        return sys.stdout.write(text)

    def flush(self) -> None:
        sys.stdout.flush()


class _StdoutLogger:
    def __init__(self, name: str = "-") -> None:
        self.name = name

    def msg(self, message: str) -> None:
        sys.stdout.write(message + "\n")
        sys.stdout.flush()

    log = debug = info = warn = warning = error = critical = fatal = exception = failure = msg


def _shared_processors() -> list[Any]:
    return [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        _add_origin,
        _flatten_exception,
        _redact,
    ]


def _add_origin(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    event["service"] = _service
    trace_id = tracing.current_trace_id()
    if trace_id is not None:
        event["trace_id"] = trace_id
    return event


def _flatten_exception(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Replaces `exc_info` by class, scrubbed message and code locations, without source lines and values."""
    error = _exception_of(event.pop("exc_info", None))
    if error is not None:
        event["error"] = describe_exception(error)
        frames = traceback.extract_tb(error.__traceback__)[-_MAX_FRAMES:]
        event["stack"] = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
    if _report_error is not None and (event.get("level") in ("error", "critical") or method == "exception"):
        _report_error(str(event.get("event", "")), error, event)
    return event


def _exception_of(exc_info: Any) -> BaseException | None:
    if isinstance(exc_info, BaseException):
        return exc_info
    if isinstance(exc_info, tuple):
        return cast(BaseException | None, exc_info[1])
    return sys.exc_info()[1] if exc_info else None


def _redact(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    for key, value in event.items():
        if key in ("event", "error"):
            event[key] = scrub(value)
        elif key in _UNTOUCHED or key.startswith("_"):
            continue
        else:
            event[key] = MASK if is_sensitive(key) and value not in (None, "") else scrub(value)
    return event


def _render(logger: WrappedLogger, method: str, event: EventDict) -> str:
    ordered = {key: event.pop(key) for key in ("time", "level", "service", "event", "trace_id") if key in event}
    return orjson.dumps({**ordered, **event}, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
