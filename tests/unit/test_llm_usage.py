"""Prices, estimates and waits."""

from datetime import timedelta
from email.utils import format_datetime

import pytest

from shared.contracts.contract import now_utc
from shared.llm.sending import Clock, backoff_seconds, retry_after_seconds
from shared.llm.usage import Spending, estimate_tokens, parse_model_prices, price_nano_usd


@pytest.mark.parametrize("base_url", [None, "https://api.openai.com/v1", "http://proxy.internal:4000/v1"])
def test_a_known_model_has_a_whole_price_in_nano_dollars(base_url: str | None) -> None:
    assert price_nano_usd("gpt-4o-mini", 1000, 500, base_url=base_url) == 1000 * 150 + 500 * 600


def test_cached_tokens_cost_less() -> None:
    assert price_nano_usd("gpt-4o-mini", 1000, 0, cached_in=1000) == 75_000


def test_embeddings_have_a_price() -> None:
    assert price_nano_usd("text-embedding-3-small", 1000) == 20_000


@pytest.mark.parametrize("model", ["my-own-model", "gpt-oss-20b", "llama-3.1-8b"])
def test_a_model_on_an_unknown_server_has_none(model: str) -> None:
    assert price_nano_usd(model, 1000, 500, base_url="http://127.0.0.1:1234/v1") is None


def test_spending_adds_up_and_remembers_an_unknown_price() -> None:
    spending = Spending("gpt-4o-mini", None)
    spending.add_answer({"usage": {"prompt_tokens": 10, "completion_tokens": 5}}, sent=["x"], received="y")
    known = spending.usage()
    spending.add_answer({"model": "nobody-knows", "usage": {"prompt_tokens": 1}}, sent=["x"], received="abc")

    assert (known.tokens_in, known.tokens_out, known.price_known) == (10, 5, True)
    assert spending.usage().tokens_in == 11
    assert spending.usage().tokens_out == 5 + estimate_tokens(["abc"])
    assert not spending.usage().price_known
    assert spending.usage().cost_nano_usd == known.cost_nano_usd


@pytest.mark.parametrize("reported", [None, "many", {"prompt_tokens": -1}, {"prompt_tokens": True}, {}])
def test_what_is_not_reported_is_estimated(reported: object) -> None:
    spending = Spending("m", None)
    spending.add_answer({"usage": reported}, sent=["hello world"])

    assert spending.usage().tokens_in == estimate_tokens(["hello world"]) == 4 + 4


@pytest.mark.parametrize("text", ["Explain how HTTPS works.", "Giải thích HTTPS hoạt động như thế nào.", "東京の天気"])
def test_the_estimate_is_rather_too_high(text: str) -> None:
    assert estimate_tokens([text]) >= len(text.split())
    assert estimate_tokens([text]) <= len(text.encode())


def test_the_offline_model_costs_nothing_and_that_is_known() -> None:
    spending = Spending("offline-rules-1", "http://127.0.0.1:1/v1")
    spending.add_answer({"usage": {"prompt_tokens": 10, "completion_tokens": 5}}, sent=[])

    usage = spending.usage()
    assert usage.offline
    assert usage.price_known
    assert usage.cost_nano_usd == 0
    assert usage.tokens_in == 10


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({}, None),
    ],
)
def test_retry_after_is_read(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_seconds(headers) == seconds


def test_retry_after_as_a_date_counts_from_now() -> None:
    moment = format_datetime(now_utc() + timedelta(seconds=10), usegmt=True)

    seconds = retry_after_seconds({"retry-after": moment})

    assert seconds is not None
    assert 8 < seconds <= 10


def test_backoff_grows_to_a_bound() -> None:
    assert 0.125 <= backoff_seconds(1) <= 0.25
    assert 2 <= backoff_seconds(5) <= 4
    assert backoff_seconds(60) <= 4


def test_the_clock_keeps_the_reserve() -> None:
    clock = Clock(now_utc() + timedelta(seconds=10), 2)

    assert 7.9 < clock.left() <= 8
    assert Clock(now_utc(), 0).left() <= 0


def test_a_set_price_goes_by_the_name_asked_for_or_reported_and_zero_is_one() -> None:
    prices = parse_model_prices("my-model=0.15/0.60, free=0")
    spending = Spending("my-model", "http://127.0.0.1:1/v1", prices)
    usage = {"prompt_tokens": 1000, "completion_tokens": 500}
    spending.add_answer({"model": "/models/file.gguf", "usage": usage}, sent=[])
    assert spending.usage().cost_nano_usd == 1000 * 150 + 500 * 600
    assert spending.usage().price_known
    free = Spending("alias", "http://127.0.0.1:1/v1", prices)
    free.add_answer({"model": "free", "usage": usage}, sent=[])
    assert (free.usage().cost_nano_usd, free.usage().price_known) == (0, True)


@pytest.mark.parametrize("text", ["m", "m=", "=1", "m=a/b", "m=-1", "m=1/NaN", "m=1/2/3"])
def test_a_price_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="dollars per million tokens"):
        parse_model_prices(text)
