"""Reports errors to Sentry without content. Sentry's client is not imported when no DSN is configured."""

from collections.abc import Callable, MutableMapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from shared.observability.scrubbing import describe_exception, scrub, scrub_text

if TYPE_CHECKING:
    from sentry_sdk.transport import Transport
    from sentry_sdk.types import Event, Hint

_FLUSH_SECONDS = 2.0
_MAX_CAUSES = 10
_KEPT_FIELDS = frozenset({"logger", "topic", "component", "operation", "code", "upgrade_id", "tenant_id", "reason"})

_user_ref: ContextVar[str | None] = ContextVar("user_ref", default=None)
_active = False


def tag_user(user_ref: str | None) -> None:
    """Tags the current task's further reports with `userId`. `user_ref` is the keyed hash, never the plain id."""
    _user_ref.set(user_ref)


def configure_error_reports(
    service: str, dsn: str | None, transport: "type[Transport] | None" = None
) -> Callable[[str, BaseException | None, MutableMapping[str, Any]], None] | None:
    """Starts the Sentry client and returns the function that reports an error, or None without a DSN.

    The function takes message, exception and log fields; it neither blocks nor raises. `transport` replaces sending
    over HTTP.
    """
    global _active
    _active = False
    if not dsn:
        return None
    import sentry_sdk
    from sentry_sdk.integrations.dedupe import DedupeIntegration

    # send_default_pii is off by default; setting it is deprecated.
    sentry_sdk.init(
        dsn=dsn,
        transport=transport,
        default_integrations=False,
        auto_enabling_integrations=False,
        integrations=[DedupeIntegration()],
        include_local_variables=False,
        include_source_context=False,
        max_request_body_size="never",
        max_breadcrumbs=0,
        server_name="",
        before_send=_before_send,
    )
    sentry_sdk.get_global_scope().set_tag("component", service)
    _active = True
    return _report


def flush() -> None:
    """Waits up to 2 s for queued reports to be sent."""
    if _active:
        import sentry_sdk

        sentry_sdk.flush(timeout=_FLUSH_SECONDS)


def _report(message: str, error: BaseException | None, fields: MutableMapping[str, Any]) -> None:
    if not _active:
        return
    import sentry_sdk

    with sentry_sdk.new_scope() as scope:
        scope.set_context("log", {key: scrub(fields[key]) for key in _KEPT_FIELDS & fields.keys()})
        if error is not None:
            sentry_sdk.capture_exception(error)
        else:
            sentry_sdk.capture_message(scrub_text(message), level="error")


def _before_send(event: "Event", hint: "Hint") -> "Event | None":
    for part in ("request", "user", "breadcrumbs", "extra", "modules", "server_name"):
        event.pop(part, None)  # type: ignore[misc]
    user_ref = _user_ref.get()
    if user_ref is not None:
        event.setdefault("tags", {})["userId"] = user_ref
    exc_info = hint.get("exc_info")
    chain = _described_chain(exc_info[1]) if exc_info else {}
    for item in (event.get("exception") or {}).get("values", []):
        described = chain.get((str(item.get("type")), str(item.get("value"))))
        item["value"] = described if described is not None else scrub_text(str(item.get("value", "")))
        for frame in (item.get("stacktrace") or {}).get("frames", []):
            for part in ("vars", "context_line", "pre_context", "post_context"):
                frame.pop(part, None)
    return event


def _described_chain(error: BaseException | None) -> dict[tuple[str, str], str]:
    """Safe descriptions of an exception and its causes, by class name and raw message."""
    described: dict[tuple[str, str], str] = {}
    for _ in range(_MAX_CAUSES):
        if error is None:
            break
        described[(type(error).__name__, str(error))] = describe_exception(error)
        error = error.__cause__ or error.__context__
    return described
