"""Announces, once per tenant, meter and month, that 80 % and 100 % of a limit are used."""

from collections.abc import Collection, Iterator, Sequence

from services.usage.counting.increments import CounterKey
from services.usage.counting.ledger_store import LedgerStore
from services.usage.plans.plans import PlanStore, quota_of
from shared.contracts.contract import derived_id, now_utc
from shared.contracts.quota import THRESHOLDS, Meter, QuotaPeriod, QuotaThresholdReached, TenantQuota
from shared.contracts.topics import QUOTA_THRESHOLD_REACHED
from shared.messaging.errors import Transient
from shared.messaging.publish.outbox import Fact, FactOutbox, outbox_collection
from shared.messaging.publish.producer import EventProducer
from shared.storage.documents import Database, StorageUnavailable

ANNOUNCED = outbox_collection("quota_thresholds")

_MOST_REMEMBERED = 100_000


class ThresholdOutbox:
    """Records announcements and publishes them later, so that a slow broker never delays counting.

    Declares its collection: create it before the database is started.
    """

    def __init__(self, database: Database, producer: EventProducer) -> None:
        self._outbox = FactOutbox(database.collection(ANNOUNCED), producer, _NotInLedger())

    async def record(self, announcement_id: str, reached: QuotaThresholdReached) -> None:
        """Records the event unless the id has one already. It is durable afterwards. Raises StorageUnavailable."""
        event_id = derived_id("quota-threshold", announcement_id)
        fact = Fact(QUOTA_THRESHOLD_REACHED, reached.tenant_id, event_id, reached)
        try:
            await self._outbox.record(announcement_id, reached.tenant_id, {}, [fact])
        except Transient as error:
            raise StorageUnavailable(str(error)) from error

    async def sweep(self) -> None:
        """Publishes the recorded events that have not been published; to be run every few seconds."""
        await self._outbox.sweep_all()


class Thresholds:
    """The use case. It compares stored counters with limits, so that a repeated call announces nothing twice."""

    def __init__(self, ledger: LedgerStore, plans: PlanStore, outbox: ThresholdOutbox) -> None:
        self._ledger = ledger
        self._plans = plans
        self._outbox = outbox
        self._announced: set[str] = set()

    async def announce_reached(self, keys: Collection[CounterKey]) -> None:
        """Announces every threshold that these counters have reached. Raises StorageUnavailable."""
        stored = await self._ledger.counters_of(list(keys))
        plans = await self._plans.get_many({counters.tenant_id for counters in stored})
        for counters in stored:
            quota = quota_of(counters.tenant_id, counters.period, plans[counters.tenant_id], counters)
            for reached in reached_thresholds(quota):
                await self._announce(counters.period, reached)

    async def _announce(self, period: str, reached: QuotaThresholdReached) -> None:
        parts = (reached.tenant_id, period, reached.meter.value, str(reached.threshold_percent))
        announcement_id = "|".join(parts)
        if announcement_id in self._announced:
            return
        await self._outbox.record(announcement_id, reached)
        if len(self._announced) >= _MOST_REMEMBERED:
            self._announced.clear()  # it only saves reads of the store
        self._announced.add(announcement_id)


def reached_thresholds(quota: TenantQuota) -> Iterator[QuotaThresholdReached]:
    """The thresholds that a tenant has reached; none for meters without a limit or without any use."""
    for meter in Meter:
        used: int = getattr(quota.counters, meter.value)
        limit: int | None = getattr(quota.limits, meter.value)
        for percent in THRESHOLDS:
            if limit is not None and used > 0 and used * 100 >= limit * percent:
                yield QuotaThresholdReached(
                    tenant_id=quota.tenant_id,
                    meter=meter,
                    period=QuotaPeriod.of(quota.period),
                    threshold_percent=percent,
                    used=used,
                    limit=limit,
                    occurred_at=now_utc(),
                )


class _NotInLedger:
    """The ledger port of the outbox. The ledger does not count threshold events, so it never has one."""

    async def missing(self, event_ids: Sequence[str]) -> set[str]:
        return set(event_ids)
