"""The outbox on SQLite, with a fake broker and a fake ledger."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from shared.contracts.contract import Contract, new_id
from shared.contracts.topics import USAGE_RECORDED, Topic
from shared.contracts.upgrade_tasks import ComponentUsage, Stage, StageOutput
from shared.messaging.errors import MessageTooLarge
from shared.messaging.publish.outbox import FactOutbox, outbox_collection
from shared.messaging.publish.producer import EventProducer
from shared.service.recorded_stage import usage_facts
from shared.storage.sqlite import SqliteDatabase
from tests.unit.upgrade_fixtures import make_task

TOO_LARGE = "y" * 100


class Broker:
    def __init__(self) -> None:
        self.has: list[str] = []

    async def publish(self, topic: Topic, key: str, data: Contract, *, event_id: str, **_: Any) -> None:
        assert topic is USAGE_RECORDED
        if TOO_LARGE.encode() in data.to_json():
            raise MessageTooLarge("over its limit")
        self.has.append(event_id)


class Ledger:
    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def missing(self, event_ids: Sequence[str]) -> set[str]:
        return set(event_ids) - set(self._broker.has)


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[SqliteDatabase]:
    opened = SqliteDatabase(tmp_path / "outbox.sqlite3")
    yield opened
    await opened.stop(1)


async def test_a_fact_that_is_too_large_does_not_block_others(database: SqliteDatabase) -> None:
    broker = Broker()
    records = database.collection(outbox_collection("outputs"))
    outbox = FactOutbox(records, cast(EventProducer, broker), Ledger(broker))
    await database.start()
    recorded = []
    for operation in (TOO_LARGE, "summarize"):
        used = ComponentUsage(component="summarizer", operation=operation, tokens_in=1)
        task, output = make_task(upgrade_id=new_id()), StageOutput(stage=Stage.SUMMARIZER, usage=[used])
        record, _ = await outbox.record(
            task.upgrade_id, task.tenant_id, output.to_document(), usage_facts(task, output)
        )
        recorded.append(record)

    await outbox.publish(recorded[0])  # logs the failure and does not raise
    await FactOutbox(records, cast(EventProducer, broker), Ledger(broker)).sweep()
    await outbox.sweep()

    open_ids = [record["_id"] for record in await records.find({"unsettledSince": {"$exists": True}})]
    assert open_ids == [recorded[0]["_id"]]
    assert broker.has == [recorded[1]["facts"][0]["eventId"]]
