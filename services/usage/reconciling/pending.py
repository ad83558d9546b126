"""Finds the events that are in the topics but not in the ledger yet, and the amounts they will add."""

from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any

from aiokafka.errors import KafkaError

from services.usage.counting.handlers import to_ledger_event
from services.usage.counting.increments import CounterKey, increments_of
from services.usage.counting.ledger_event import LedgerEvent
from services.usage.counting.ledger_store import LedgerStore
from services.usage.settings import ReconcileSettings
from shared.contracts.contract import now_utc
from shared.contracts.quota import Meter
from shared.contracts.topics import COMPLETED, USAGE_RECORDED
from shared.messaging.cloudevents import decode
from shared.messaging.errors import Undecodable, Unprocessable
from shared.messaging.operate.topic_reading import read_uncommitted
from shared.messaging.settings import KafkaSettings

GROUP = "usage.ledger"

_MOST_RECORDS = 200_000


class TopicsUnreachable(Exception):
    """The broker does not answer."""


@dataclass(frozen=True, order=True)
class PendingAmount:
    """An amount that pending events will add to a counter."""

    tenant_id: str
    period: str
    meter: str
    amount: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Pending:
    """How many events are pending and what they add; with `all_read` False there may be more.

    `keys` are the tenants and periods with pending events, including those whose amounts are all zero.
    """

    events: int = 0
    all_read: bool = True
    amounts: list[PendingAmount] = field(default_factory=list)
    keys: frozenset[CounterKey] = frozenset()

    def may_have(self, key: CounterKey) -> bool:
        """Whether events of this tenant and period may be pending."""
        return key in self.keys or not self.all_read


def pending_reader(settings: ReconcileSettings, ledger: LedgerStore) -> Callable[[], Awaitable[Pending]]:
    """A function that reads what is pending for the service's own consumer group, as `pending_events` does."""

    async def read() -> Pending:
        oldest = now_utc() - timedelta(days=settings.usage_event_retention_days)
        return await pending_events(settings, GROUP, ledger, oldest)

    return read


async def pending_events(
    settings: KafkaSettings, group: str, ledger: LedgerStore, oldest: datetime, most: int = _MOST_RECORDS
) -> Pending:
    """Reads at most `most` records after the group's committed offsets. Raises TopicsUnreachable, StorageUnavailable.

    Events that occurred before `oldest` will be refused and are not pending. The ledger is read after the topics, so
    that events counted meanwhile are not pending either.
    """
    events: dict[str, LedgerEvent] = {}
    read = 0
    try:
        for topic in (USAGE_RECORDED, COMPLETED):
            records = await read_uncommitted(settings, topic, group, most - read)
            read += len(records)
            for record in records:
                try:
                    event = to_ledger_event(decode(topic, record.value, record.headers), oldest)
                except (Undecodable, Unprocessable):
                    continue  # it becomes a dead letter
                events[event.event_id] = event
    except (KafkaError, OSError, TimeoutError) as error:
        raise TopicsUnreachable(type(error).__name__) from error
    missing = [events[event_id] for event_id in await ledger.missing(list(events))] if events else []
    by_counter = increments_of(missing).counters
    amounts = [
        PendingAmount(key.tenant_id, key.period, meter.value, sums[meter.value])
        for key, sums in by_counter.items()
        for meter in Meter
        if sums.get(meter.value)
    ]
    return Pending(len(missing), read < most, sorted(amounts), frozenset(by_counter))
