"""A transactional outbox: stores a result and the events that follow from it in one document, then publishes them.

A record holds the caller's `content` and its `facts`, the events to publish. `unsettledSince` marks a record until all
its facts have arrived: events that the usage service counts are settled once its ledger has them, others once the
broker has confirmed them. A periodic sweep publishes unsettled facts again.
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

FACT_SWEEP_SECONDS = 2.0
"""The interval at which callers run `FactOutbox.sweep_all`."""
_SWEEP_BATCH = 200
_REPUBLISH_AFTER_SECONDS = 8.0

log = get_logger(__name__)


@dataclass(frozen=True)
class Fact:
    """An event to publish. `event_id` is derived from what it reports, so that all copies are the same event."""

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
        """Whether the usage service counts this event, so that its ledger can confirm the arrival."""
        return "usage" in self.topic.consumers


class LedgerUnavailable(Exception):
    """The usage service did not respond."""


class Ledger(Protocol):
    """The usage service's record of counted events."""

    async def missing(self, event_ids: Sequence[str]) -> set[str]:
        """Returns those of `event_ids` that are not counted yet. Raises LedgerUnavailable."""


def outbox_collection(name: str) -> CollectionSpec:
    """The collection for an outbox, with a partial index over unsettled records."""
    return CollectionSpec(
        name=name,
        indexes=(
            Index(fields=("unsettledSince",), only_when_present="unsettledSince"),
            Index(fields=("tenantId", "_id")),
        ),
    )


class FactOutbox:
    """Inserts records, of which the first one per id stands, and publishes their facts at least once."""

    def __init__(self, records: Collection, producer: EventProducer, ledger: Ledger) -> None:
        self.records = records
        self._producer = producer
        self._ledger = ledger
        # Of unsettled records: ids whose facts this process has published, and when it last tried to.
        self._published: set[str] = set()
        self._tried: dict[str, float] = {}

    async def find(self, record_id: str) -> dict[str, Any] | None:
        """Returns the record, or None. Raises Transient when the store is unavailable."""
        try:
            return await self.records.get(record_id)
        except StorageUnavailable as error:
            raise Transient(f"storage: {error}") from error

    async def record(
        self, record_id: str, tenant_id: str, content: dict[str, Any], facts: Sequence[Fact]
    ) -> tuple[dict[str, Any], bool]:
        """Inserts a record unless the id exists. Returns the stored record and whether it is the one passed in.

        Raises Transient when the store is unavailable.
        """
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
        """Publishes the facts of an unsettled record. Does not raise: the sweep retries what fails."""
        if "unsettledSince" not in record:
            return
        self._tried[record["_id"]] = time.monotonic()
        try:
            await asyncio.gather(*(self._send(Fact.from_document(fact)) for fact in record["facts"]))
            self._published.add(record["_id"])
        except (Transient, MessageTooLarge) as error:
            log.warning("facts_not_published", record_id=record["_id"], error=str(error))

    async def sweep_all(self) -> None:
        """Repeats `sweep` while it settles full batches. Raises StorageUnavailable and LedgerUnavailable."""
        while await self.sweep() == _SWEEP_BATCH:
            pass

    async def sweep(self) -> int:
        """Settles up to 200 of the oldest records and publishes missing facts again.

        Returns the number of settled records. Raises StorageUnavailable and LedgerUnavailable.
        """
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
        """Whether all facts of a record have arrived; if not, publishes those again that may not have."""
        facts = [Fact.from_document(fact) for fact in record["facts"]]
        lacking = [fact for fact in facts if fact.event_id in missing]
        if not lacking:
            if record["_id"] in self._published or all(fact.in_ledger for fact in facts):
                return True
            # Unknown after a restart whether these were published, and no ledger can tell: publish once more.
            lacking = [fact for fact in facts if not fact.in_ledger]
        if time.monotonic() - self._tried.get(record["_id"], 0.0) > _REPUBLISH_AFTER_SECONDS:
            self._tried[record["_id"]] = time.monotonic()
            try:
                await asyncio.gather(*(self._send(fact) for fact in lacking))
            except MessageTooLarge as error:
                # It can never be sent, and must not block the records after it.
                log.error("fact_too_large", record_id=record["_id"], error=str(error))
                return False
            for fact in lacking:
                FACTS_REPUBLISHED.labels(topic=fact.topic.name).inc()
            if all(not fact.in_ledger for fact in lacking):
                self._published.add(record["_id"])
        return False

    async def _send(self, fact: Fact) -> None:
        await self._producer.publish(fact.topic, fact.key, fact.data, event_id=fact.event_id, subject=fact.subject)
