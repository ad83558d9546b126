"""What the topics still have for the ledger: events after the last offset that the counting has committed."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Protocol

from aiokafka.errors import KafkaError

from services.usage.counting.handlers import to_ledger_event
from services.usage.counting.increments import CounterKey, increments_of
from services.usage.counting.ledger_event import LedgerEvent
from shared.contracts.topics import COMPLETED, USAGE_RECORDED
from shared.messaging.cloudevents import decode
from shared.messaging.errors import Undecodable, Unprocessable
from shared.messaging.operate.topic_reading import read_uncommitted
from shared.messaging.settings import KafkaSettings

GROUP = "usage.ledger"
MOST_RECORDS = 200_000
_METERS = ("upgrades", "tokens", "embeddings")


class TopicsUnreachable(Exception):
    """The broker does not answer."""


@dataclass(frozen=True, order=True)
class PendingAmount:
    """An amount that will be counted when its events have been read."""

    tenant_id: str
    period: str
    meter: str
    amount: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Pending:
    """`events` that the ledger lacks and the topics have; `all_read` is False when there were too many to read.

    `of` are the tenants and periods that have some, also where they add up to nothing.
    """

    events: int = 0
    all_read: bool = True
    amounts: list[PendingAmount] = field(default_factory=list)
    of: frozenset[CounterKey] = frozenset()

    def may_have(self, key: CounterKey) -> bool:
        """Whether something of this tenant and period may be pending."""
        return key in self.of or not self.all_read


class Missing(Protocol):
    async def missing(self, event_ids: Sequence[str]) -> list[str]:
        """Those that are not in the ledger as counted."""


async def pending_events(
    settings: KafkaSettings, group: str, ledger: Missing, oldest_taken: datetime, most: int = MOST_RECORDS
) -> Pending:
    """Asks the ledger after it has read the topics, so that what was counted meanwhile is not pending.

    Raises TopicsUnreachable.
    """
    events: dict[str, LedgerEvent] = {}
    read = 0
    try:
        for topic in (USAGE_RECORDED, COMPLETED):
            records = await read_uncommitted(settings, topic, group, most - read)
            read += len(records)
            for record in records:
                try:
                    event = to_ledger_event(decode(topic, record.value, record.headers), oldest_taken)
                except (Undecodable, Unprocessable):
                    continue  # it goes to the dead letters
                events[event.event_id] = event
    except (KafkaError, OSError, TimeoutError) as error:
        raise TopicsUnreachable(type(error).__name__) from error
    lacking = [events[event_id] for event_id in await ledger.missing(list(events))] if events else []
    by_counter = increments_of(lacking).counters
    amounts = [
        PendingAmount(key.tenant_id, key.period, meter, sums[meter])
        for key, sums in by_counter.items()
        for meter in _METERS
        if sums.get(meter)
    ]
    return Pending(len(lacking), read < most, sorted(amounts), frozenset(by_counter))
