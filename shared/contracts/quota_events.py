"""What is told about quotas: that a tenant has used a share of one."""

from datetime import UTC, datetime
from typing import Literal

from pydantic import Field

from shared.contracts.contract import Contract, Timestamp
from shared.contracts.plans import Meter

ThresholdPercent = Literal[80, 100]
THRESHOLDS: tuple[ThresholdPercent, ...] = (80, 100)


class QuotaPeriod(Contract):
    """A UTC calendar month: `start` belongs to it, `end` is the first moment after it."""

    start: Timestamp
    end: Timestamp

    @staticmethod
    def of(period: str) -> "QuotaPeriod":
        """The bounds of a month written as `YYYY-MM`."""
        year, month = int(period[:4]), int(period[5:])
        after = datetime(year + month // 12, month % 12 + 1, 1, tzinfo=UTC)
        return QuotaPeriod(start=datetime(year, month, 1, tzinfo=UTC), end=after)


class QuotaThresholdReached(Contract):
    """Data of `quota.threshold-reached.v1`: one event for each tenant, meter, period and threshold.

    `used` and `limit` are what they were when it was noticed, in upgrades, tokens or embeddings.
    """

    tenant_id: str
    meter: Meter
    period: QuotaPeriod
    threshold_percent: ThresholdPercent
    used: int = Field(ge=0)
    limit: int = Field(ge=0)
    occurred_at: Timestamp
