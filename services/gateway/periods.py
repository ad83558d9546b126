"""UTC calendar months: the periods that quotas are for."""

from datetime import UTC, datetime


def start_of_period(period: str) -> datetime:
    """The first moment of a period `YYYY-MM`."""
    return datetime(int(period[:4]), int(period[5:]), 1, tzinfo=UTC)


def end_of_period(period: str) -> datetime:
    """The first moment after a period."""
    year, month = int(period[:4]), int(period[5:])
    return datetime(year + month // 12, month % 12 + 1, 1, tzinfo=UTC)
