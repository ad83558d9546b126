"""Topic creation and the operator commands, against a real broker with the registered topics."""

import asyncio
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from deploy.local import servers
from deploy.local.ports import free_port
from shared.contracts.topics import DOCUMENTS_SUBMITTED, HOUR_MS, all_topics, dead_letter_topic
from shared.messaging.connection import make_admin
from shared.messaging.publish.dead_letters import DeadLetters
from shared.messaging.publish.producer import EventProducer
from shared.messaging.settings import KafkaSettings
from shared.messaging.topics import TopicsNotReady, create_topics
from tests.component.messaging_setup import records_of, settings_for, started_producer

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
async def own_broker() -> AsyncIterator[KafkaSettings]:
    """A separate broker, since these tests read whole topics of the registry."""
    async with await servers.start_tansu() as broker:
        settings = settings_for(broker.url)
        await create_topics(settings)
        yield settings


@pytest.fixture
async def producer(own_broker: KafkaSettings) -> AsyncIterator[EventProducer]:
    producer = await started_producer(own_broker)
    yield producer
    await producer.stop(1)


def command(settings: KafkaSettings, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    address = {"KAFKA_BOOTSTRAP_SERVERS": settings.kafka_bootstrap_servers, "KAFKA_ENABLE_IDEMPOTENCE": "false"}
    return subprocess.run(
        [sys.executable, "-m", f"shared.messaging.operate.{module}", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=REPOSITORY,
        env=os.environ | address,
    )


async def in_thread(settings: KafkaSettings, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(command, settings, module, *arguments)


async def listed(settings: KafkaSettings, *arguments: str) -> list[dict[str, Any]]:
    answer = await in_thread(settings, "dlq", "list", "--json", *arguments)
    assert answer.returncode == 0, answer.stderr
    found: list[dict[str, Any]] = json.loads(answer.stdout)
    return found


def one(letter: dict[str, Any]) -> tuple[str, ...]:
    """The options that choose a letter, here by the name of its dead-letter topic."""
    return ("--topic", f"{letter['topic']}.dlq", "--offset", letter["place"])


async def bury(settings: KafkaSettings, producer: EventProducer, value: bytes) -> None:
    await producer.publish_record(DOCUMENTS_SUBMITTED, b"tenant", value, [("ce_id", b"e1")])
    record = (await records_of(settings, DOCUMENTS_SUBMITTED))[-1]
    await DeadLetters(DOCUMENTS_SUBMITTED, producer).write(record, error_class="Undecodable", detail="why", attempts=1)


async def test_topics_are_created_as_registered_and_creating_them_again_is_harmless(own_broker: KafkaSettings) -> None:
    await create_topics(own_broker)
    admin = make_admin(own_broker)
    await admin.start()
    described = {topic["topic"]: len(topic["partitions"]) for topic in await admin.describe_topics()}
    await admin.close()
    assert described == {topic.name: topic.partitions for topic in all_topics()}


async def test_a_broker_that_cannot_change_topics_is_used_as_it_is(
    own_broker: KafkaSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = dataclasses.replace(DOCUMENTS_SUBMITTED, retention_ms=HOUR_MS)
    await create_topics(own_broker)
    assert "topics_not_changed" not in capsys.readouterr().out
    await create_topics(own_broker, [changed])
    assert "topics_not_changed" in capsys.readouterr().out


async def test_without_a_broker_creating_topics_says_so_in_time() -> None:
    settings = settings_for(f"127.0.0.1:{free_port()}")
    with pytest.raises(TopicsNotReady):
        await create_topics(settings, within_seconds=0.5)


async def test_dead_letters_are_listed_shown_replayed_and_dropped(
    own_broker: KafkaSettings, producer: EventProducer
) -> None:
    await bury(own_broker, producer, b'{"first": 1}')
    await bury(own_broker, producer, b'{"second": 2}')
    first, second = await listed(own_broker)
    assert (first["topic"], first["state"], first["error_class"]) == (DOCUMENTS_SUBMITTED.name, "open", "Undecodable")

    shown = await in_thread(own_broker, "dlq", "show", *one(first), "--json")
    assert json.loads(shown.stdout)[0]["body"] == '{"first": 1}'

    replayed = await in_thread(own_broker, "dlq", "replay", *one(first))
    assert replayed.returncode == 0, replayed.stderr
    again = [r for r in await records_of(own_broker, DOCUMENTS_SUBMITTED) if r.value == b'{"first": 1}']
    assert len(again) == 2
    assert [(r.key, list(r.headers)) for r in again] == [(b"tenant", [("ce_id", b"e1")])] * 2

    dropped = await in_thread(own_broker, "dlq", "drop", *one(second))
    assert dropped.returncode == 0, dropped.stderr
    assert await listed(own_broker) == []
    assert {letter["state"] for letter in await listed(own_broker, "--all")} == {"replayed", "dropped"}
    assert dead_letter_topic(DOCUMENTS_SUBMITTED).partitions == 1


async def test_commands_report_wrong_use_in_one_line(own_broker: KafkaSettings) -> None:
    for module, arguments, told in (
        ("dlq", ("list", "--topic", "nonsense"), "no dead letters are kept for nonsense"),
        ("dlq", ("drop",), "say which"),
        ("events", ("nonsense",), "no topic nonsense"),
    ):
        answer = await in_thread(own_broker, module, *arguments)
        assert answer.returncode == 2
        assert told in answer.stderr
        assert "Traceback" not in answer.stderr


async def test_a_topic_is_followed(own_broker: KafkaSettings, producer: EventProducer) -> None:
    await producer.publish_record(DOCUMENTS_SUBMITTED, b"tenant", b'{"a": 1}', [("ce_subject", b"upgrade-1")])
    await producer.publish_record(DOCUMENTS_SUBMITTED, b"tenant", b"no json", [])
    followed = await in_thread(
        own_broker, "events", DOCUMENTS_SUBMITTED.name, "--from-beginning", "--limit", "2", "--json"
    )
    assert followed.returncode == 0, followed.stderr
    assert [json.loads(line)["data"] for line in followed.stdout.splitlines()] == [{"a": 1}, "no json"]
    readable = await in_thread(own_broker, "events", DOCUMENTS_SUBMITTED.name, "--from-beginning", "--limit", "1")
    [line] = readable.stdout.splitlines()
    assert "subject=upgrade-1" in line
    assert line.endswith('{"a": 1}')
    assert readable.stderr.startswith(f"following {DOCUMENTS_SUBMITTED.name}; Ctrl-C ends")


async def test_without_a_topic_the_topics_are_listed(own_broker: KafkaSettings) -> None:
    listing = await in_thread(own_broker, "events")
    assert listing.returncode == 0, listing.stderr
    assert [line.split()[0] for line in listing.stdout.splitlines()] == [topic.name for topic in all_topics()]


@pytest.mark.parametrize(("module", "arguments"), [("events", ["usage.recorded.v1"]), ("dlq", ["list"])])
def test_a_stack_that_was_killed_is_not_running(tmp_path: Path, module: str, arguments: list[str]) -> None:
    (tmp_path / "endpoints.json").write_text('{"kafka": "127.0.0.1:1"}')
    (tmp_path / "supervisor.lock").write_text("1\n")
    answer = without_a_broker(
        "deploy.local", "env", "--", sys.executable, "-m", f"shared.messaging.operate.{module}", *arguments,
        DATA_DIR=str(tmp_path),
    )  # fmt: skip
    assert answer.returncode == 3
    [line] = answer.stderr.splitlines()
    assert line.startswith("the stack is not running: `make run` starts it")


@pytest.mark.parametrize(("module", "arguments"), [("events", ["usage.recorded.v1"]), ("dlq", ["drop", "--all"])])
def test_a_command_needs_the_address_of_its_broker(module: str, arguments: list[str]) -> None:
    answer = without_a_broker(f"shared.messaging.operate.{module}", *arguments)
    assert answer.returncode == 2
    [line] = answer.stderr.splitlines()
    assert line.startswith("KAFKA_BOOTSTRAP_SERVERS is not set")


def without_a_broker(module: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name != "KAFKA_BOOTSTRAP_SERVERS"}
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=REPOSITORY,
        env=kept | variables,
    )
