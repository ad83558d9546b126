"""Facts are recorded together with what caused them, and published again until the ledger has them.

A record is one document: `content` is the caller's, `facts` are the events it owes the world. `unsettledSince` is
there until every fact is known to have arrived, so that a partial index keeps the open records cheap to find.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from shared.contracts.contract import Contract, format_utc, now_utc
from shared.contracts.topics import Topic, topic_named
from shared.messaging.errors import MessageTooLarge, Transient
from shared.messaging.publish.producer import EventProducer
from shared.observability.logs import get_logger
from shared.observability.metrics import FACTS_REPUBLISHED
from shared.storage.documents import Collection, CollectionSpec, Index, StorageUnavailable

FACT_SWEEP_SECONDS = 2.0  # how often `sweep_all` is to run
_SWEEP_BATCH = 200
_REPUBLISH_AFTER_SECONDS = 8.0

log = get_logger(__name__)


@dataclass(frozen=True)
class Fact:
    """An event that is owed to the world. `event_id` is derived, so every copy of it is the same event."""

    topic: Topic
    key: str
    event_id: str
    data: Contract
    subject: str | None = None

    def to_document(self) -> dict[str, Any]:
        return {
            "topic": self.topic.name,
            "key": self.key,
            "eventId": self.event_id,
            "subject": self.subject,
            "data": self.data.to_document(),
        }

    @staticmethod
    def from_document(document: dict[str, Any]) -> "Fact":
        topic = topic_named(document["topic"])
        assert topic.model is not None  # noqa: S101 -- only topics with a schema carry facts
        return Fact(
            topic=topic,
            key=document["key"],
            event_id=document["eventId"],
            data=topic.model.model_validate(document["data"]),
            subject=document["subject"],
        )

    @property
    def in_ledger(self) -> bool:
        """Whether the usage service counts this fact, and so can tell whether it has it."""
        return "usage" in self.topic.consumers


def outbox_collection(name: str) -> CollectionSpec:
    """The collection of an outbox: records by id, and the open ones by age."""
    return CollectionSpec(
        name=name,
        indexes=(
            Index(fields=("unsettledSince",), only_when_present="unsettledSince"),
            Index(fields=("tenantId", "_id")),
        ),
    )


class LedgerUnavailable(Exception):
    """The usage service did not answer; ask again later."""


class Ledger(Protocol):
    async def missing(self, event_ids: Sequence[str]) -> set[str]:
        """Those of `event_ids` that are not counted yet. Raises LedgerUnavailable."""


class FactOutbox:
    """Records content with its facts, first one wins, and publishes the facts at least once."""

    def __init__(self, records: Collection, producer: EventProducer, ledger: Ledger) -> None:
        self.records = records
        self._producer = producer
        self._ledger = ledger
        self._published: set[str] = set()
        self._tried: dict[str, float] = {}

    async def find(self, record_id: str) -> dict[str, Any] | None:
        """The record of that id, or None. Raises Transient while the store is out."""
        try:
            return await self.records.get(record_id)
        except StorageUnavailable as error:
            raise Transient(f"storage: {error}") from error

    async def record(
        self, record_id: str, tenant_id: str, content: dict[str, Any], facts: Sequence[Fact]
    ) -> tuple[dict[str, Any], bool]:
        """Writes the record if there is none of that id. Gives the record that stands, and whether it is ours."""
        document: dict[str, Any] = {
            "_id": record_id,
            "tenantId": tenant_id,
            "content": content,
            "facts": [fact.to_document() for fact in facts],
            "createdAt": format_utc(now_utc()),
        }
        if facts:
            document["unsettledSince"] = document["createdAt"]
        try:
            return await self.records.insert_if_absent(document)
        except StorageUnavailable as error:
            raise Transient(f"storage: {error}") from error

    async def publish(self, record: dict[str, Any]) -> None:
        """Publishes the facts of a record, unless they are settled. What fails here, the sweep does later."""
        if "unsettledSince" not in record:
            return
        self._tried[record["_id"]] = time.monotonic()
        try:
            await asyncio.gather(*(self._send(Fact.from_document(fact)) for fact in record["facts"]))
            self._published.add(record["_id"])
        except (Transient, MessageTooLarge) as error:
            log.warning("facts_not_published", record_id=record["_id"], error=str(error))

    async def _send(self, fact: Fact) -> None:
        await self._producer.publish(fact.topic, fact.key, fact.data, event_id=fact.event_id, subject=fact.subject)

    async def sweep_all(self) -> None:
        """Settles everything that can be settled now."""
        while await self.sweep() == _SWEEP_BATCH:
            pass

    async def sweep(self) -> int:
        """Settles records whose facts have arrived, publishes again what has not. Gives how many were settled."""
        records = await self.records.find(
            {"unsettledSince": {"$exists": True}}, sort=[("unsettledSince", 1)], limit=_SWEEP_BATCH
        )
        tracked = [f["eventId"] for r in records for f in r["facts"] if "usage" in topic_named(f["topic"]).consumers]
        missing = await self._ledger.missing(tracked) if tracked else set()
        settled = [record["_id"] for record in records if await self._settles(record, missing)]
        if settled:
            await self.records.update_many({"_id": {"$in": settled}}, {"$unset": {"unsettledSince": ""}})
            self._published.difference_update(settled)
            for record_id in settled:
                self._tried.pop(record_id, None)
        return len(settled)

    async def _settles(self, record: dict[str, Any], missing: set[str]) -> bool:
        facts = [Fact.from_document(fact) for fact in record["facts"]]
        lacking = [fact for fact in facts if fact.event_id in missing]
        if not lacking:
            if record["_id"] in self._published or all(fact.in_ledger for fact in facts):
                return True
            # Published before a restart, or never: nobody can tell, so it goes out once more.
            lacking = [fact for fact in facts if not fact.in_ledger]
        if time.monotonic() - self._tried.get(record["_id"], 0.0) > _REPUBLISH_AFTER_SECONDS:
            self._tried[record["_id"]] = time.monotonic()
            try:
                await asyncio.gather(*(self._send(fact) for fact in lacking))
            except MessageTooLarge as error:
                # It never will fit, and the records behind it must not wait for it.
                log.error("fact_too_large", record_id=record["_id"], error=str(error))
                return False
            for fact in lacking:
                FACTS_REPUBLISHED.labels(topic=fact.topic.name).inc()
            if all(not fact.in_ledger for fact in lacking):
                self._published.add(record["_id"])
        return False
