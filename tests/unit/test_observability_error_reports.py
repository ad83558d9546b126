import json
from collections.abc import Iterator
from typing import Any

import pytest
import sentry_sdk
from sentry_sdk.envelope import Envelope
from sentry_sdk.transport import Transport

from shared.observability import error_reports
from shared.observability.error_reports import tag_user
from shared.observability.logs import configure_logs, get_logger
from shared.service.settings import ObservabilitySettings
from shared.service.telemetry import setup

SENT: list[dict[str, Any]] = []


class KeptTransport(Transport):
    def capture_envelope(self, envelope: Envelope) -> None:
        event = envelope.get_event()
        if event is not None:
            SENT.append(dict(event))


@pytest.fixture(autouse=True)
def _reports() -> Iterator[None]:
    SENT.clear()
    reporter = error_reports.configure_error_reports("upgrader", "https://key@sentry.invalid/1", KeptTransport)
    configure_logs("upgrader", "INFO", reporter)
    yield
    tag_user(None)
    sentry_sdk.init(default_integrations=False, auto_enabling_integrations=False)
    error_reports.configure_error_reports("upgrader", None)
    configure_logs("upgrader", "INFO")


def test_an_error_is_reported_with_component_and_user() -> None:
    tag_user("u_0123")
    password = "hunter22"
    try:
        raise RuntimeError(f"jane.doe@example.com sent password={password}")
    except RuntimeError:
        get_logger("x").exception("handler failed", topic="a.v1", user_prompt="secret prompt")
    (event,) = SENT
    assert event["tags"] == {"component": "upgrader", "userId": "u_0123"}
    assert event["exception"]["values"][-1]["type"] == "RuntimeError"
    assert event["contexts"]["log"]["topic"] == "a.v1"
    text = json.dumps(event, default=str)
    for secret in ("jane", "hunter22", "secret prompt", '"vars"', "context_line"):
        assert secret not in text
    assert "request" not in event
    assert "user" not in event


def test_an_error_without_exception_is_a_message() -> None:
    get_logger("x").error("stalled")
    assert SENT[0]["message"] == "stalled"


def test_warnings_are_not_reported() -> None:
    get_logger("x").warning("retrying")
    assert SENT == []


def test_silent_without_a_dsn() -> None:
    sentry_sdk.init(default_integrations=False, auto_enabling_integrations=False)
    setup("upgrader", ObservabilitySettings(sentry_dsn=None))
    get_logger("x").error("stalled")
    assert SENT == []
