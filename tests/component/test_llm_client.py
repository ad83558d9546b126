"""The model client against a real server that answers, fails, stammers and hangs as scripted."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from email.utils import format_datetime

import pytest
from pydantic import BaseModel, Field

from shared.contracts.contract import now_utc
from shared.llm.client import ChatMessage, Completion, ModelClient
from shared.llm.errors import ModelAnswerInvalid, ModelError, ModelRefused, ModelTimeout, ModelUnavailable
from shared.llm.sections import render_sections
from shared.llm.settings import ModelSettings
from shared.observability.metrics import MODEL_CALLS, MODEL_TOKENS
from tests.conftest import eventually
from tests.model_server import Behaviour, ModelServer, Step
from tests.model_server import scripted_model as scripted_model

PROMPT = "write about the zebra crossing in Hanoi"


class PromptRewrite(BaseModel):
    upgraded_prompt: str = Field(min_length=1)
    reasoning: str
    missing_questions: list[str]
    confidence: float = Field(ge=0, le=1)
    cited_documents: list[int]


MESSAGES = [
    ChatMessage("system", "Rewrite the prompt."),
    ChatMessage("user", render_sections({"mode": "full", "language": "en", "prompt": PROMPT})),
]
GOOD = '{"upgraded_prompt": "x", "reasoning": "", "missing_questions": [], "confidence": 0.5, "cited_documents": []}'

Start = Callable[..., Awaitable[ModelClient]]


@pytest.fixture
async def start(scripted_model: ModelServer) -> AsyncIterator[Start]:
    """Starts clients of the scripted server; settings can be given by name."""
    async with AsyncExitStack() as stack:

        async def started(**settings: object) -> ModelClient:
            values = {"openai_base_url": scripted_model.url, "openai_model": "scripted-chat", **settings}
            client = ModelClient(ModelSettings(**values, _env_file=None))  # type: ignore[arg-type]
            await client.start()
            stack.push_async_callback(client.stop, 0)
            return client

        yield started


def within(seconds: float) -> datetime:
    return now_utc() + timedelta(seconds=seconds)


async def rewrite(client: ModelClient, seconds: float = 10, operation: str = "rewrite") -> Completion[PromptRewrite]:
    return await client.complete(
        operation=operation,
        messages=MESSAGES,
        output=PromptRewrite,
        max_tokens=500,
        temperature=0.2,
        deadline=within(seconds),
    )


async def test_an_answer_comes_as_the_class_with_its_usage(start: Start, scripted_model: ModelServer) -> None:
    completion = await rewrite(await start())

    assert completion.value.upgraded_prompt == f"Upgraded (full): {PROMPT}\nFormat: plain text."
    assert completion.usage.model == "scripted-chat"
    assert completion.usage.tokens_in > 0
    assert completion.usage.tokens_out > 0
    assert completion.usage.attempts == 1
    assert not completion.usage.offline
    assert not completion.usage.price_known
    sent = scripted_model.received("chat")[0].body
    assert sent["response_format"]["json_schema"]["name"] == "prompt_rewrite"
    assert sent["response_format"]["json_schema"]["strict"] is True
    assert sent["response_format"]["json_schema"]["schema"]["additionalProperties"] is False
    assert sent["max_tokens"] == 500


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
async def test_a_passing_fault_is_asked_again(start: Start, scripted_model: ModelServer, status: int) -> None:
    scripted_model.script(Step(status=status))

    completion = await rewrite(await start())

    assert completion.usage.attempts == 2


@pytest.mark.parametrize("kind", ["cut", "cut_body"])
async def test_a_cut_connection_is_asked_again(start: Start, scripted_model: ModelServer, kind: str) -> None:
    scripted_model.script(Step.model_validate({"kind": kind}))

    assert (await rewrite(await start())).usage.attempts == 2


async def test_retry_after_in_seconds_is_waited_for(start: Start, scripted_model: ModelServer) -> None:
    scripted_model.script(Step(status=429, headers={"Retry-After": "1.2"}))

    await rewrite(await start())

    first, second = scripted_model.received("chat")
    assert 1.15 <= second.at - first.at < 2.5


async def test_retry_after_as_a_date_is_waited_for(start: Start, scripted_model: ModelServer) -> None:
    moment = within(2).replace(microsecond=0)
    scripted_model.script(Step(status=503, headers={"Retry-After": format_datetime(moment, usegmt=True)}))

    await rewrite(await start())

    assert scripted_model.received("chat")[1].at >= moment.timestamp() - 0.05


async def test_a_retry_after_beyond_the_deadline_ends_the_call_at_once(
    start: Start, scripted_model: ModelServer
) -> None:
    scripted_model.script(Step(status=429, headers={"Retry-After": "30"}))
    client = await start()
    began = time.monotonic()

    with pytest.raises(ModelUnavailable, match="429") as failure:
        await rewrite(client, seconds=5)

    assert time.monotonic() - began < 1
    assert failure.value.code == "model_unavailable"
    assert failure.value.usage.attempts == 1


async def test_attempts_are_spent_and_then_it_is_unavailable(start: Start, scripted_model: ModelServer) -> None:
    scripted_model.script(Step(status=500, times=10))

    with pytest.raises(ModelUnavailable, match="HTTP 500") as failure:
        await rewrite(await start(model_attempts=3))

    assert failure.value.usage.attempts == len(scripted_model.received()) == 3
    assert failure.value.usage.tokens_in == 0


async def test_a_hang_ends_within_the_attempts_time_and_is_asked_again(
    start: Start, scripted_model: ModelServer
) -> None:
    scripted_model.script(Step(kind="hang"))
    client = await start(model_attempt_timeout_seconds=0.4)

    assert (await rewrite(client)).usage.attempts == 2
    await eventually(lambda: _none_in_flight(scripted_model))


async def test_a_hang_never_outlives_the_deadline(start: Start, scripted_model: ModelServer) -> None:
    scripted_model.behaviour.default = Step(kind="hang")
    client = await start(model_attempt_timeout_seconds=20, model_deadline_reserve_seconds=0.2)
    began = time.monotonic()

    with pytest.raises(ModelTimeout):
        await rewrite(client, seconds=1)

    assert 0.6 < time.monotonic() - began < 1
    assert client.breaker.state == "closed"


async def test_a_deadline_that_is_over_makes_no_request(start: Start, scripted_model: ModelServer) -> None:
    with pytest.raises(ModelTimeout):
        await rewrite(await start(), seconds=0.3)

    assert scripted_model.total == 0


@pytest.mark.parametrize(
    ("status", "words"), [(400, "HTTP 400"), (401, "OPENAI_API_KEY"), (404, "OPENAI_MODEL"), (422, "HTTP 422")]
)
async def test_a_lasting_fault_is_not_asked_again(
    start: Start, scripted_model: ModelServer, status: int, words: str
) -> None:
    scripted_model.script(Step(status=status, error={"message": f"no: {PROMPT}"}))

    with pytest.raises(ModelUnavailable, match=words) as failure:
        await rewrite(await start())

    assert scripted_model.total == 1
    assert "zebra" not in failure.value.detail


@pytest.mark.parametrize(
    "error",
    [
        {"code": "context_length_exceeded"},
        {"message": "the request exceeds the available context size (4096 tokens), try increasing it"},
        {"message": "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens."},
        {"message": "input length exceeds the context length"},
    ],
    ids=["OpenAI", "llama.cpp", "vLLM", "Ollama"],
)
async def test_a_request_that_is_too_long_is_said_so(
    start: Start, scripted_model: ModelServer, error: dict[str, str]
) -> None:
    scripted_model.script(Step(status=400, error=error))
    with pytest.raises(ModelUnavailable, match="too long for the model"):
        await rewrite(await start())
    assert scripted_model.total == 1


async def test_spent_credit_is_not_asked_again(start: Start, scripted_model: ModelServer) -> None:
    scripted_model.script(Step(status=429, error={"code": "insufficient_quota"}))

    with pytest.raises(ModelUnavailable, match="credit"):
        await rewrite(await start())

    assert scripted_model.total == 1


@pytest.mark.parametrize("kind", ["refusal", "filtered"])
async def test_a_refusal_is_said_so_and_charged(start: Start, scripted_model: ModelServer, kind: str) -> None:
    scripted_model.script(Step.model_validate({"kind": kind}))

    with pytest.raises(ModelRefused) as failure:
        await rewrite(await start())

    assert failure.value.code == "model_refused"
    assert failure.value.usage.tokens_in > 0
    assert scripted_model.total == 1


async def test_a_content_filter_of_the_server_is_a_refusal(start: Start, scripted_model: ModelServer) -> None:
    scripted_model.script(Step(status=400, error={"code": "content_filter"}))

    with pytest.raises(ModelRefused):
        await rewrite(await start())


@pytest.mark.parametrize("kind", ["garbage", "not_json", "empty", "length"])
async def test_a_useless_answer_is_repaired_once(start: Start, scripted_model: ModelServer, kind: str) -> None:
    scripted_model.script(Step.model_validate({"kind": kind}))

    completion = await rewrite(await start())

    assert completion.usage.attempts == 2
    first, second = scripted_model.received("chat")
    assert len(second.body["messages"]) > len(first.body["messages"])


async def test_an_endless_answer_is_no_answer_and_is_not_sent_back(start: Start, scripted_model: ModelServer) -> None:
    endless = {"upgraded_prompt": "y" * 1_500_000, "reasoning": "", "missing_questions": [], "confidence": 0.5}
    scripted_model.script(Step(text=json.dumps(endless | {"cited_documents": []})))

    completion = await rewrite(await start())

    assert completion.usage.attempts == 2
    assert len(str(scripted_model.received("chat")[1].body)) < 100_000


@pytest.mark.parametrize("kind", ["garbage", "not_json", "empty", "length"])
async def test_two_useless_answers_are_an_error_with_the_usage_of_both(
    start: Start, scripted_model: ModelServer, kind: str
) -> None:
    scripted_model.script(Step.model_validate({"kind": kind, "times": 5}))

    with pytest.raises(ModelAnswerInvalid) as failure:
        await rewrite(await start())

    assert scripted_model.total == failure.value.usage.attempts == 2
    assert failure.value.usage.tokens_in > 0
    if kind == "length":
        assert "500 tokens" in failure.value.detail


async def test_the_repair_hears_what_was_wrong_and_sums_up_the_usage(start: Start, scripted_model: ModelServer) -> None:
    scripted_model.script(Step(kind="text", text='{"upgraded_prompt": "x", "confidence": 7}'))

    completion = await rewrite(await start())

    first, second = scripted_model.received("chat")
    assert "confidence: less_than_equal" in second.body["messages"][-1]["content"]
    assert second.body["messages"][-2]["role"] == "assistant"
    words = sum(len(m["content"].split()) for item in (first, second) for m in item.body["messages"])
    assert completion.usage.tokens_in == words


@pytest.mark.parametrize("wrapped", [f"```json\n{GOOD}\n```", f"Here it is:\n{GOOD}\nAnything else?"])
async def test_words_around_the_object_are_forgiven(start: Start, scripted_model: ModelServer, wrapped: str) -> None:
    scripted_model.script(Step(kind="text", text=wrapped))

    assert (await rewrite(await start())).usage.attempts == 1


async def test_a_server_without_json_schema_gets_json_object_from_then_on(
    start: Start, scripted_model: ModelServer
) -> None:
    scripted_model.behaviour.json_schema = False
    client = await start(model_attempts=1)

    await rewrite(client)
    await rewrite(client)

    forms = [item.body["response_format"]["type"] for item in scripted_model.received("chat")]
    assert forms == ["json_schema", "json_object", "json_object"]
    assert '"cited_documents"' in scripted_model.received("chat")[1].body["messages"][0]["content"]


async def test_a_server_that_takes_next_to_nothing_is_learned(start: Start, scripted_model: ModelServer) -> None:
    scripted_model.behaviour = Behaviour(json_schema=False, json_object=False, max_tokens=False, temperature=False)
    client = await start()

    await asyncio.gather(*(rewrite(client) for _ in range(5)))
    await rewrite(client)

    last = scripted_model.received("chat")[-1].body
    assert "response_format" not in last
    assert "temperature" not in last
    assert last["max_completion_tokens"] == 500


async def test_missing_usage_is_estimated(start: Start, scripted_model: ModelServer) -> None:
    scripted_model.behaviour.usage = False

    usage = (await rewrite(await start())).usage

    characters = sum(len(message.content) for message in MESSAGES)
    assert usage.tokens_in >= characters / 3
    assert usage.tokens_out > 0


async def test_a_known_model_has_its_price_also_behind_a_proxy(start: Start, scripted_model: ModelServer) -> None:
    scripted_model.behaviour.chat_model = "gpt-4o-mini-2024-07-18"

    usage = (await rewrite(await start())).usage

    assert usage.price_known
    assert usage.cost_nano_usd == usage.tokens_in * 150 + usage.tokens_out * 600


async def test_the_offline_model_is_free_and_known(start: Start, scripted_model: ModelServer) -> None:
    scripted_model.behaviour.chat_model = "offline-rules-1"

    usage = (await rewrite(await start())).usage

    assert usage.offline
    assert usage.price_known
    assert usage.cost_nano_usd == 0


@pytest.mark.parametrize("base64", [True, False])
async def test_embeddings_come_in_order(start: Start, scripted_model: ModelServer, base64: bool) -> None:
    scripted_model.behaviour.encoding_base64 = base64
    client = await start()
    texts = [f"text number {index}" for index in range(300)]

    embedded = await client.embed(texts, operation="embed", deadline=within(10))

    assert len(embedded.vectors) == embedded.usage.embeddings == 300
    assert embedded.usage.attempts == 2
    alone = await client.embed([texts[299]], operation="embed", deadline=within(10))
    assert alone.vectors[0] == pytest.approx(embedded.vectors[299], abs=1e-6)


async def test_no_texts_make_no_request(start: Start, scripted_model: ModelServer) -> None:
    embedded = await (await start()).embed([], operation="embed", deadline=within(10))

    assert embedded.vectors == []
    assert scripted_model.total == 0


async def test_garbage_for_embeddings_is_asked_once_more(start: Start, scripted_model: ModelServer) -> None:
    client = await start()
    scripted_model.script(Step(kind="garbage"))
    assert (await client.embed(["a"], operation="embed", deadline=within(10))).usage.attempts == 2

    scripted_model.script(Step(kind="garbage", times=2))
    with pytest.raises(ModelAnswerInvalid) as failure:
        await client.embed(["a"], operation="embed", deadline=within(10))
    assert failure.value.usage.embeddings == 0


async def test_the_breaker_opens_and_then_nothing_waits(start: Start, scripted_model: ModelServer) -> None:
    scripted_model.behaviour.default = Step(status=503)
    client = await start(model_breaker_failures=3, model_attempts=3)
    with pytest.raises(ModelUnavailable):
        await rewrite(client)
    assert client.breaker.state == "open"
    requests = scripted_model.total
    began = time.monotonic()

    for _ in range(20):
        with pytest.raises(ModelUnavailable, match="left alone"):
            await rewrite(client)

    assert time.monotonic() - began < 0.5
    assert scripted_model.total == requests


async def test_one_probe_closes_the_breaker_again_and_no_caller_waits_for_it(
    start: Start, scripted_model: ModelServer
) -> None:
    client = await start(model_breaker_failures=1, model_breaker_open_seconds=0.3, model_attempts=1)
    scripted_model.script(Step(status=500), Step(kind="answer", delay_seconds=1.0))
    with pytest.raises(ModelUnavailable):
        await rewrite(client)
    await eventually(lambda: _refuses_no_more(client))
    began = time.monotonic()

    outcomes = await asyncio.gather(*(rewrite(client) for _ in range(20)), return_exceptions=True)

    assert time.monotonic() - began < 0.9
    assert all(isinstance(outcome, ModelUnavailable) for outcome in outcomes)
    await eventually(lambda: _is_closed(client))
    assert scripted_model.total == 2
    probe = scripted_model.received("chat")[1].body
    assert (probe["max_tokens"], probe["messages"]) == (1, [{"role": "user", "content": "ping"}])
    await rewrite(client)


async def test_a_probe_that_fails_opens_the_breaker_again(start: Start, scripted_model: ModelServer) -> None:
    client = await start(model_breaker_failures=1, model_breaker_open_seconds=0.2, model_attempts=1)
    scripted_model.script(Step(status=500), Step(status=503))
    with pytest.raises(ModelUnavailable):
        await rewrite(client)
    await eventually(lambda: _refuses_no_more(client))
    with pytest.raises(ModelUnavailable):
        await rewrite(client)
    await eventually(lambda: _received(scripted_model, 2))
    await eventually(lambda: _is_open(client))

    await eventually(lambda: _refuses_no_more(client))
    with pytest.raises(ModelUnavailable):
        await rewrite(client)
    await eventually(lambda: _is_closed(client))


async def test_a_probe_that_is_refused_shows_that_the_model_answers(start: Start, scripted_model: ModelServer) -> None:
    client = await start(model_breaker_failures=1, model_breaker_open_seconds=0.2, model_attempts=1)
    scripted_model.script(Step(status=500), Step(status=400))
    with pytest.raises(ModelUnavailable):
        await rewrite(client)
    await eventually(lambda: _refuses_no_more(client))
    with pytest.raises(ModelUnavailable):
        await rewrite(client)
    await eventually(lambda: _is_closed(client))


async def test_a_probe_ends_with_its_client(start: Start, scripted_model: ModelServer) -> None:
    client = await start(model_breaker_failures=1, model_breaker_open_seconds=0.2, model_attempts=1)
    scripted_model.script(Step(status=500), Step(kind="hang"))
    with pytest.raises(ModelUnavailable):
        await rewrite(client)
    await eventually(lambda: _refuses_no_more(client))
    with pytest.raises(ModelUnavailable):
        await rewrite(client)
    await eventually(lambda: _received(scripted_model, 2))
    await client.stop(1)
    await eventually(lambda: _none_in_flight(scripted_model))


async def test_a_slow_model_that_does_not_stream_gets_all_the_time_that_is_left(
    start: Start, scripted_model: ModelServer
) -> None:
    scripted_model.behaviour.latency_seconds = 0.7
    client = await start(model_attempt_timeout_seconds=0.4, model_breaker_failures=1)

    completion = await rewrite(client, seconds=5)

    assert completion.usage.attempts == 2
    assert client.breaker.state == "closed"


async def test_a_slow_model_that_streams_is_waited_for_while_it_writes(
    start: Start, scripted_model: ModelServer
) -> None:
    scripted_model.behaviour.chunk_seconds = 0.1
    client = await start(model_attempt_timeout_seconds=0.4, model_breaker_failures=1)
    began = time.monotonic()

    completion = await rewrite(client, seconds=10)

    assert time.monotonic() - began > 0.8
    assert completion.usage.attempts == 1
    assert completion.usage.tokens_out > 0
    assert completion.value.upgraded_prompt.startswith("Upgraded (full)")


async def test_a_model_that_streams_and_falls_silent_is_a_failing_one(
    start: Start, scripted_model: ModelServer
) -> None:
    scripted_model.behaviour.chunk_seconds = 0.01
    client = await start(model_attempt_timeout_seconds=0.4, model_breaker_failures=2)
    await rewrite(client)
    scripted_model.behaviour.default = Step(kind="hang")

    with pytest.raises(ModelTimeout):
        await rewrite(client, seconds=2)

    assert client.breaker.state == "open"


async def test_a_server_that_takes_no_stream_is_asked_without_from_then_on(
    start: Start, scripted_model: ModelServer
) -> None:
    scripted_model.behaviour.stream = False
    client = await start()
    assert (await rewrite(client)).usage.attempts == 2
    assert (await rewrite(client)).usage.attempts == 1
    assert "stream" not in scripted_model.received("chat")[-1].body


async def test_all_calls_that_were_sent_before_it_was_known_are_repeated_without(
    start: Start, scripted_model: ModelServer
) -> None:
    scripted_model.behaviour.stream = False
    client = await start()
    answers = await asyncio.gather(*(rewrite(client) for _ in range(8)))
    assert {answer.usage.attempts for answer in answers} <= {1, 2}


async def test_those_who_wait_for_a_slot_are_turned_away_when_it_opens(
    start: Start, scripted_model: ModelServer
) -> None:
    client = await start(model_breaker_failures=2, model_max_in_flight=1, model_attempts=1)
    scripted_model.script(Step(status=500, times=2))

    outcomes = await asyncio.gather(*(rewrite(client) for _ in range(30)), return_exceptions=True)

    assert all(isinstance(outcome, ModelUnavailable) for outcome in outcomes)
    assert scripted_model.total == 2


async def test_bad_answers_and_429_leave_the_breaker_closed(start: Start, scripted_model: ModelServer) -> None:
    client = await start(model_breaker_failures=1, model_attempts=1)
    for step in (Step(status=429), Step(kind="garbage", times=2), Step(kind="refusal"), Step(status=401)):
        scripted_model.script(step)
        with pytest.raises(ModelError):
            await rewrite(client)
        assert client.breaker.state == "closed"


async def test_requests_in_flight_are_bounded(start: Start, scripted_model: ModelServer) -> None:
    scripted_model.behaviour.latency_seconds = 0.05
    client = await start(model_max_in_flight=4)

    await asyncio.gather(*(rewrite(client) for _ in range(24)))

    assert scripted_model.most_in_flight == 4


async def test_a_wait_for_a_slot_ends_with_the_deadline(start: Start, scripted_model: ModelServer) -> None:
    scripted_model.behaviour.default = Step(kind="hang")
    client = await start(model_max_in_flight=1)
    blocking = asyncio.create_task(rewrite(client, seconds=30))
    await eventually(lambda: _received(scripted_model, 1))

    with pytest.raises(ModelTimeout):
        await rewrite(client, seconds=1)

    blocking.cancel()
    await asyncio.wait([blocking])
    scripted_model.behaviour.default = Step()
    await rewrite(client)


async def test_stop_waits_for_calls_in_flight(start: Start, scripted_model: ModelServer) -> None:
    scripted_model.behaviour.latency_seconds = 0.3
    client = await start()
    call = asyncio.create_task(rewrite(client))
    await eventually(lambda: _received(scripted_model, 1))

    await client.stop(5)

    assert (await call).value.confidence == 0.75


async def test_no_prompt_is_logged_even_at_debug(
    start: Start, scripted_model: ModelServer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        client = await start()
        await rewrite(client)
        scripted_model.script(Step(status=400, error={"message": PROMPT}))
        with pytest.raises(ModelUnavailable):
            await rewrite(client)

    assert "zebra" not in caplog.text


async def test_every_request_is_counted_by_how_it_ended(start: Start, scripted_model: ModelServer) -> None:
    client = await start(model_breaker_failures=2)
    scripted_model.script(Step(status=429), Step(kind="cut"), Step(kind="empty"), Step(kind="answer"))
    await rewrite(client, operation="counted")
    scripted_model.script(Step(kind="refusal"))
    with pytest.raises(ModelRefused):
        await rewrite(client, operation="counted")
    scripted_model.script(Step(status=500, times=2))
    with pytest.raises(ModelUnavailable):
        await rewrite(client, operation="counted")

    def counted(outcome: str) -> float:
        return float(MODEL_CALLS.labels(operation="counted", outcome=outcome)._value.get())

    outcomes = ("rate_limited", "connection", "invalid", "ok", "refused", "server_fault", "breaker_open")
    assert {outcome: counted(outcome) for outcome in outcomes} == {
        **dict.fromkeys(outcomes, 1.0),
        "server_fault": 2.0,
    }
    assert MODEL_TOKENS.labels(operation="counted", direction="in")._value.get() > 0


async def _is_closed(client: ModelClient) -> bool:
    return client.breaker.state == "closed"


async def _is_open(client: ModelClient) -> bool:
    return client.breaker.state == "open"


async def _refuses_no_more(client: ModelClient) -> bool:
    return not client.breaker.refuses()


async def _received(server: ModelServer, count: int) -> bool:
    return server.total >= count


async def _none_in_flight(server: ModelServer) -> bool:
    return server.in_flight == 0
