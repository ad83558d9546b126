import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from shared.observability.logs import configure_logs, get_logger
from shared.observability.scrubbing import MASK, describe_exception, scrub, scrub_text
from shared.observability.tracing import span_from_traceparent

early_logger = get_logger("early")


@pytest.fixture(autouse=True)
def _logs() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    configure_logs("example", "INFO")
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


def only_line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    answer: dict[str, Any] = json.loads(lines[0])
    return answer


def test_a_line_has_time_level_service_event_and_fields(capsys: pytest.CaptureFixture[str]) -> None:
    early_logger.info("batch counted", events=3, tokens_in=7)
    line = only_line(capsys)
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info",
        "service": "example",
        "event": "batch counted",
        "logger": "early",
        "events": 3,
        "tokens_in": 7,
    }


def test_levels_below_the_setting_are_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    early_logger.debug("unheard")
    logging.getLogger("some.library").debug("unheard")
    assert capsys.readouterr().out == ""


def test_libraries_log_in_the_same_shape(capsys: pytest.CaptureFixture[str]) -> None:
    logging.getLogger("some.library").warning("lost %s", "connection")
    line = only_line(capsys)
    assert (line["level"], line["event"], line["service"]) == ("warning", "lost connection", "example")
    assert line["logger"] == "some.library"


def test_the_trace_id_is_on_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    with span_from_traceparent("work", f"00-{'a' * 32}-{'b' * 16}-00"):
        early_logger.info("inside")
    assert only_line(capsys)["trace_id"] == "a" * 32


def test_sensitive_fields_are_masked(capsys: pytest.CaptureFixture[str]) -> None:
    early_logger.warning(
        "odd request", user_prompt="my prompt", api_key="k", internal_token="t", nested={"password": "p", "size": 1}
    )
    line = only_line(capsys)
    assert (line["user_prompt"], line["api_key"], line["internal_token"]) == (MASK, MASK, MASK)
    assert line["nested"] == {"password": MASK, "size": 1}


def test_an_exception_is_logged_without_its_input(capsys: pytest.CaptureFixture[str]) -> None:
    class Strict(BaseModel):
        amount: int

    try:
        Strict.model_validate({"amount": "jane.doe@example.com"})
    except ValueError:
        early_logger.exception("not handled")
    line = only_line(capsys)
    assert line["error"] == "ValidationError: amount (int_parsing)"
    assert any("test_an_exception_is_logged" in frame for frame in line["stack"])
    assert "jane" not in json.dumps(line)


@pytest.mark.parametrize(
    "secret",
    [
        "jane.doe@example.com",
        "redis://user:hunter22@cache:6379/0",
        "Authorization: Bearer abcdefghijkl",
        "sk-abcdefghijklmnopqrstuvwx",
        "pu_abcdefghijklmnopqrstuvwx",
        "password=hunter22",
        "4111 1111 1111 1111",
        "4111111111111111",
        "+44 20 7946 0958",
        "DE89 3704 0044 0532 0130 00",
    ],
)
def test_secret_looking_text_is_masked(secret: str) -> None:
    assert MASK in scrub_text(f"failed for {secret} today")


@pytest.mark.parametrize(
    "harmless",
    [
        "offset 123456789 of upgrades.rewrite.v1",
        "0193f1a2-7b3c-7def-8123-456789abcdef",
        "2026-11-23T15:04:05.123Z",
        "took 12.5 s, 4 of 5 attempts",
        "http://127.0.0.1:8080/internal",
        "version 3.11.7",
    ],
)
def test_harmless_text_stays(harmless: str) -> None:
    assert scrub_text(harmless) == harmless


def test_long_and_deep_values_are_bounded() -> None:
    assert len(scrub_text("x" * 100_000)) < 3_000
    deep: dict[str, Any] = {}
    for _ in range(50):
        deep = {"inner": deep}
    assert MASK in json.dumps(scrub(deep))


def test_an_exception_is_one_line() -> None:
    assert describe_exception(ValueError("a\nb")) == "ValueError: a b"
    assert describe_exception(KeyError()) == "KeyError"
