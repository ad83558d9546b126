"""Announces once per tenant, meter and month that 80 % and 100 % of a limit are used."""

from collections.abc import Collection, Iterator, Sequence
from typing import Protocol

from services.usage.counting.increments import CounterKey
from services.usage.plans.plans import PlanRecord, quota_of
from shared.contracts.contract import derived_id, now_utc
from shared.contracts.internal_http import TenantCounters
from shared.contracts.quota import THRESHOLDS, Meter, QuotaPeriod, QuotaThresholdReached, TenantQuota
from shared.contracts.topics import QUOTA_THRESHOLD_REACHED
from shared.messaging.errors import Transient
from shared.messaging.publish.outbox import Fact, FactOutbox, outbox_collection
from shared.messaging.publish.producer import EventProducer
from shared.storage.documents import Database, StorageUnavailable

_MOST_REMEMBERED = 100_000


class Counters(Protocol):
    async def counters_of(self, keys: Sequence[CounterKey]) -> list[TenantCounters]:
        """The counters that exist."""


class PlansOfMany(Protocol):
    async def of_each(self, tenant_ids: Collection[str]) -> dict[str, PlanRecord]:
        """Each tenant's plan; FREE when nobody has set one."""


class Announcements(Protocol):
    async def announce(self, announcement_id: str, reached: QuotaThresholdReached) -> None:
        """Sees to it that the event goes out, once per id however often it is called. Durable when it returns."""


class Thresholds:
    """The use case. Looks at what the counters say and not at who raised them, so that it can be asked again."""

    def __init__(self, counters: Counters, plans: PlansOfMany, announcements: Announcements) -> None:
        self._counters = counters
        self._plans = plans
        self._announcements = announcements
        self._announced: set[str] = set()

    async def notice(self, keys: Collection[CounterKey]) -> None:
        """Announces every threshold that these counters are at or above. Raises StorageUnavailable."""
        stored = await self._counters.counters_of(list(keys))
        plans = await self._plans.of_each({counters.tenant_id for counters in stored})
        for counters in stored:
            quota = quota_of(counters.tenant_id, counters.period, plans[counters.tenant_id], counters)
            for reached in reached_thresholds(quota):
                await self._announce(counters.period, reached)

    async def _announce(self, period: str, reached: QuotaThresholdReached) -> None:
        parts = (reached.tenant_id, period, reached.meter.value, str(reached.threshold_percent))
        announcement_id = "|".join(parts)
        if announcement_id in self._announced:
            return
        await self._announcements.announce(announcement_id, reached)
        if len(self._announced) >= _MOST_REMEMBERED:
            self._announced.clear()  # it only saves asking the store
        self._announced.add(announcement_id)


def reached_thresholds(quota: TenantQuota) -> Iterator[QuotaThresholdReached]:
    """The thresholds that a tenant is at or above. Nobody reaches one who has used nothing, or has no limit."""
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


ANNOUNCED = outbox_collection("quota_thresholds")


class OutboxAnnouncements:
    """`Announcements` of `thresholds`, and the component that publishes them. Make it before the database starts.

    Nothing is published here: the sweep does it within seconds, so that a slow broker never holds up the counting.
    """

    def __init__(self, database: Database, producer: EventProducer) -> None:
        self._outbox = FactOutbox(database.collection(ANNOUNCED), producer, _NothingCounted())

    async def announce(self, announcement_id: str, reached: QuotaThresholdReached) -> None:
        """Records the event under its id if there is none. Raises StorageUnavailable."""
        event_id = derived_id("quota-threshold", announcement_id)
        fact = Fact(QUOTA_THRESHOLD_REACHED, reached.tenant_id, event_id, reached)
        try:
            await self._outbox.record(announcement_id, reached.tenant_id, {}, [fact])
        except Transient as error:
            raise StorageUnavailable(str(error)) from error

    async def sweep(self) -> None:
        """One round of the sweep, now."""
        await self._outbox.sweep_all()


class _NothingCounted:
    """The outbox asks the ledger about facts that the ledger counts; thresholds are none."""

    async def missing(self, event_ids: Sequence[str]) -> set[str]:
        return set(event_ids)
