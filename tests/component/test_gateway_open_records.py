"""Paging over the gateway's open records."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from shared.contracts.contract import format_utc
from tests.component.admission_parts import AdmissionParts, admission_parts

_FUTURE = timedelta(seconds=10)


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[AdmissionParts]:
    async with admission_parts(tmp_path) as parts:
        yield parts


async def _open(parts: AdmissionParts, count: int) -> list[str]:
    """Records opened at the same moment."""
    holds = [parts.hold() for _ in range(count)]
    for hold in holds:
        await parts.store.insert(parts.record(hold))
    return [hold.hold_id for hold in holds]


async def _walk(parts: AdmissionParts, moment: str, size: int) -> list[list[str]]:
    return [page async for page in parts.store.open_ids_before(moment, size)]


@pytest.mark.parametrize("at_once", [1, 3, 7, 20])
async def test_every_open_record_is_given_once_however_many_share_a_moment(parts: AdmissionParts, at_once: int) -> None:
    opened = []
    for _ in range(20 // at_once + 1):
        opened += await _open(parts, at_once)
        parts.clock.now += timedelta(milliseconds=1)
    pages = await _walk(parts, format_utc(parts.clock.now), 3)
    given = [id for page in pages for id in page]
    assert sorted(given) == sorted(opened)
    assert len(given) == len(set(given))
    assert all(pages)


async def test_those_open_longest_come_first_and_those_since_the_moment_not_at_all(parts: AdmissionParts) -> None:
    first = await _open(parts, 2)
    parts.clock.now += timedelta(seconds=1)
    second = await _open(parts, 2)
    parts.clock.now += timedelta(seconds=1)
    await _open(parts, 2)
    pages = await _walk(parts, format_utc(parts.clock.now), 2)
    assert [sorted(page) for page in pages] == [sorted(first), sorted(second)]


async def test_an_ended_record_is_not_open(parts: AdmissionParts) -> None:
    hold = parts.hold()
    await parts.store.insert(parts.record(hold))
    await parts.end(hold, settle=False)
    assert await _walk(parts, format_utc(parts.clock.now + _FUTURE), 2) == []
