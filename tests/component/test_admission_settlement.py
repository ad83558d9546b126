"""Settlement of holds: at the end of work, after counting, when due, across months, and during outages."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from services.gateway.http.problems import ProblemError
from services.gateway.quota.admission import Admission
from services.gateway.quota.held_work import HeldWork, Spent
from services.gateway.quota.holds import Hold, HoldSize
from services.gateway.quota.recording import Written, record_in_time
from services.gateway.upgrades.accepted_store import AcceptedWork
from services.gateway.upgrades.stage_clients import StageUnavailable, StageUsageUnknown
from services.gateway.upgrades.sweeps import CutShortSweep
from shared.contracts import redis_keys
from shared.contracts.contract import now_utc
from shared.contracts.problems import CONFLICT, QUOTA_EXCEEDED, RATE_LIMITED, UNAVAILABLE
from shared.contracts.quota import EmbeddingsHold, EmbeddingsHoldEnd, SpentEvent
from shared.contracts.upgrade_tasks import Stage
from shared.storage.documents import StorageUnavailable
from tests.component.admission_parts import TENANT, AdmissionParts, admission_parts
from tests.conftest import eventually


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[AdmissionParts]:
    async with admission_parts(tmp_path) as running:
        yield running


async def refused(parts: AdmissionParts, size: HoldSize | None = None) -> ProblemError:
    with pytest.raises(ProblemError) as refusal:
        await parts.admissions.admit(parts.hold(size) if size else parts.hold())
    return refusal.value


async def lose(parts: AdmissionParts) -> None:
    await parts.redis.flushall()


async def test_an_ended_hold_stays_until_it_is_counted_and_leaves_in_the_same_step(parts: AdmissionParts) -> None:
    parts.limit(upgrades=2)
    hold = await parts.accept()
    parts.usage.stand_in.counting = False
    await parts.end(hold)
    assert await parts.meter("upgrades") == (0, 1)
    assert await parts.meter("tokens") == (0, 30)
    parts.clock.move(days=3)
    await parts.settlement.sweep()
    assert await parts.meter("upgrades") == (0, 1)
    parts.usage.stand_in.counting = True
    await parts.settlement.sweep()
    assert await parts.meter("upgrades") == (1, 0)
    assert await parts.meter("tokens") == (30, 0)
    assert await parts.store.unfinished(TENANT, hold.period, 10) == []
    assert await parts.settlement.sweep() == 0


async def test_events_are_taken_off_one_by_one(parts: AdmissionParts) -> None:
    hold = await parts.accept()
    parts.usage.stand_in.counting = False
    await parts.end(hold)
    stand_in = parts.usage.stand_in
    stand_in.count()
    [end_event, rewrite] = [spent.event_id for spent in (await parts.work.of(TENANT, hold.period, 10))[0].spent]
    key = (TENANT, hold.period)
    stand_in.counted.discard(rewrite)
    stand_in.counters[key] = stand_in.counters[key].model_copy(update={"tokens": 0, "version": 1})
    await parts.settlement.sweep()
    assert end_event in stand_in.counted
    assert await parts.meter("upgrades") == (1, 0)
    assert await parts.meter("tokens") == (0, 30)
    stand_in.count()
    await parts.settlement.sweep()
    assert await parts.meter("tokens") == (30, 0)


async def test_what_is_accepted_and_counted_while_a_state_is_refreshed_is_not_counted_twice(
    parts: AdmissionParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts.limit(upgrades=2)
    await parts.end(await parts.accept())
    read = parts.work.of

    async def and_meanwhile(tenant_id: str, period: str, limit: int) -> list[HeldWork]:
        works = await read(tenant_id, period, limit)
        await parts.end(await parts.accept())
        return works

    monkeypatch.setattr(parts.work, "of", and_meanwhile)
    await parts.settlement.refresh(TENANT, parts.period)
    assert await parts.meter("upgrades") == (1, 1)
    assert await parts.meter("tokens") == (30, 30)
    monkeypatch.undo()
    await parts.settlement.refresh(TENANT, parts.period)
    assert await parts.meter("upgrades") == (2, 0)
    assert await parts.meter("tokens") == (60, 0)


async def test_an_end_that_is_counted_before_it_is_known_here_is_not_held_twice(parts: AdmissionParts) -> None:
    parts.limit(upgrades=2)
    known, unknown = await parts.accept(), await parts.accept()
    await parts.end(known)
    await parts.end(unknown, settle=False)
    await only_usage_knows_of_the_end_of(unknown, parts)
    await parts.settlement.sweep()
    assert await parts.meter("upgrades") == (2, 0)
    await parts.end(unknown)
    assert await parts.meter("upgrades") == (2, 0)
    await parts.settlement.sweep()
    assert await parts.meter("tokens") == (60, 0)


async def test_an_end_that_is_counted_and_becomes_known_while_a_state_is_refreshed_is_not_held_twice(
    parts: AdmissionParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts.limit(upgrades=1)
    hold = await parts.accept()
    await parts.end(hold, settle=False)
    await only_usage_knows_of_the_end_of(hold, parts)
    read = parts.work.of

    async def and_then_it_is_known(tenant_id: str, period: str, limit: int) -> list[HeldWork]:
        works = await read(tenant_id, period, limit)
        await parts.end(hold)
        return works

    monkeypatch.setattr(parts.work, "of", and_then_it_is_known)
    await parts.settlement.refresh(TENANT, parts.period)
    assert await parts.meter("upgrades") == (1, 0)
    assert await parts.meter("tokens") == (30, 30), "whether these are counted, nobody has asked"
    monkeypatch.undo()
    await parts.settlement.refresh(TENANT, parts.period)
    assert await parts.meter("tokens") == (30, 0)


async def only_usage_knows_of_the_end_of(hold: Hold, parts: AdmissionParts) -> None:
    """Marks the record as open again."""
    await parts.store._records.update_one(
        {"_id": hold.hold_id},
        {"$set": {"openSince": "2026-11-20T12:00:00.000Z", "outcome": "accepted"}, "$unset": {"uncountedSince": ""}},
    )


async def test_work_that_was_cut_short_holds_its_worst_case_until_it_can_cost_nothing_more(
    parts: AdmissionParts,
) -> None:
    hold = await parts.accept(stages=LocalStages.ALL)
    await parts.end(hold, error="expired", tokens=0)
    assert await parts.meter("upgrades") == (0, 0)
    assert await parts.meter("tokens") == (0, 1000)
    parts.clock.move(seconds=60)
    await parts.settlement.sweep()
    assert await parts.meter("tokens") == (0, 1000)
    await lose(parts)
    await parts.admissions.quota(TENANT, parts.period)
    assert await parts.meter("tokens") == (0, 1000)
    stages = LocalStages()
    sweep = CutShortSweep(parts.store, stages, parts.shared_clock)
    assert await sweep.run() == 0, "its stages may still be at work"
    parts.clock.move(seconds=30)
    stages.silent = {*Stage}
    assert await sweep.run() == 0
    await parts.settlement.sweep()
    assert await parts.meter("tokens") == (0, 1000), "what they have spent is not known"
    stages.silent = set()
    assert await sweep.run() == 1
    await parts.settlement.sweep()
    assert await parts.meter("tokens") == (0, 0)
    assert await parts.meter("embeddings") == (0, 0)
    assert await sweep.run() == 0


async def test_what_stages_spent_on_an_upgrade_that_was_cut_short_is_held_until_it_is_counted(
    parts: AdmissionParts,
) -> None:
    """However late usage is, since the end alone does not contain their usage."""
    hold = await parts.accept(stages=LocalStages.ALL)
    await parts.end(hold, error="expired", tokens=0)
    stages = LocalStages()
    stages.recorded[Stage.SUMMARIZER] = [Spent(event_id="summary", tokens=600)]
    stages.recorded[Stage.RAG] = [Spent(event_id="search", embeddings=2)]
    parts.clock.move(seconds=90)
    assert await CutShortSweep(parts.store, stages, parts.shared_clock).run() == 1
    await parts.settlement.sweep()
    assert (await parts.meter("tokens"), await parts.meter("embeddings")) == ((0, 600), (0, 2))
    await lose(parts)
    await parts.admissions.quota(TENANT, parts.period)
    assert (await parts.meter("tokens"), await parts.meter("embeddings")) == ((0, 600), (0, 2))
    parts.usage.stand_in.counted |= {"summary", "search"}
    await parts.settlement.sweep()
    assert (await parts.meter("tokens"), await parts.meter("embeddings")) == ((0, 0), (0, 0))


async def test_a_stage_that_is_out_keeps_its_own_share_and_no_more(parts: AdmissionParts) -> None:
    shares = {Stage.SUMMARIZER: (300, 0), Stage.RAG: (100, 4), Stage.UPGRADER: (600, 0)}
    hold = await parts.accept(stages=LocalStages.ALL, shares=shares)
    await parts.end(hold, error="deadline_exceeded", tokens=30)
    await parts.settlement.refresh(TENANT, parts.period)
    # The upgrader's usage is part of the result and is counted with it.
    assert (await parts.meter("tokens"), await parts.meter("embeddings")) == ((30, 400), (0, 4))
    parts.clock.move(seconds=90)
    stages = LocalStages()
    stages.silent = {Stage.RAG}
    stages.recorded[Stage.SUMMARIZER] = [Spent(event_id="summary", tokens=200)]
    sweep = CutShortSweep(parts.store, stages, parts.shared_clock)
    assert await sweep.run() == 0
    await parts.settlement.refresh(TENANT, parts.period)
    assert (await parts.meter("tokens"), await parts.meter("embeddings")) == ((30, 300), (0, 4))
    stages.silent = set()
    assert await sweep.run() == 1
    await parts.settlement.refresh(TENANT, parts.period)
    assert (await parts.meter("tokens"), await parts.meter("embeddings")) == ((30, 200), (0, 0))


async def test_where_nobody_else_was_at_work_nobody_is_asked(parts: AdmissionParts) -> None:
    hold = await parts.accept(shares={Stage.UPGRADER: (1000, 0)})
    await parts.end(hold, error="deadline_exceeded", tokens=30)
    assert await CutShortSweep(parts.store, LocalStages(), parts.shared_clock).run() == 1
    await parts.settlement.refresh(TENANT, parts.period)
    assert await parts.meter("tokens") == (30, 0)


async def test_a_question_that_a_stage_cannot_answer_holds_up_no_others(parts: AdmissionParts) -> None:
    for _ in range(2):
        await parts.end(await parts.accept(stages=LocalStages.ALL), error="expired", tokens=0)
    parts.clock.move(seconds=90)
    stages = LocalStages()
    sweep = CutShortSweep(parts.store, stages, parts.shared_clock)
    stages.odd = {(await parts.store.cut_short("", 1))[0].upgrade_id}
    assert await sweep.run() == 1


class LocalStages:
    """`StageSpending` with the usage that the test records."""

    ALL = (Stage.SUMMARIZER, Stage.RAG, Stage.UPGRADER)

    def __init__(self) -> None:
        self.recorded: dict[Stage, list[Spent]] = {}
        self.silent: set[Stage] = set()
        self.odd: set[str] = set()

    async def spent(self, stage: Stage, tenant_id: str, upgrade_id: str) -> list[Spent]:
        if stage in self.silent:
            raise StageUnavailable("out")
        if upgrade_id in self.odd:
            raise StageUsageUnknown("odd")
        return self.recorded.get(stage, [])


async def test_a_month_ends(parts: AdmissionParts) -> None:
    parts.limit(upgrades=2)
    first, last = await parts.accept(), await parts.accept()
    november = parts.period
    await parts.end(first)
    problem = await refused(parts)
    assert problem.extra["resetsAt"] == "2026-12-01T00:00:00.000Z"
    parts.clock.move(days=11)
    assert parts.period == "2026-12"
    december = await parts.accept()
    quota = await parts.admissions.quota(TENANT, "2026-12")
    assert [(meter.used, meter.held) for meter in quota.meters] == [(0, 1), (0, 1000), (0, 4)]
    # Running across the end of the month, it counts once, in the month in which it was accepted.
    await parts.end(last)
    await parts.end(december)
    await parts.settlement.sweep()
    assert await parts.meter("upgrades", november) == (2, 0)
    assert await parts.meter("upgrades", "2026-12") == (1, 0)
    assert (await parts.admissions.quota(TENANT, november)).meters[0].used == 2


async def test_a_lost_state_is_rebuilt_exactly(parts: AdmissionParts) -> None:
    parts.limit(upgrades=5)
    counted, uncounted, running = [await parts.accept() for _ in range(3)]
    await parts.end(counted)
    await parts.settlement.sweep()
    parts.usage.stand_in.counting = False
    await parts.end(uncounted)
    await lose(parts)
    quota = await parts.admissions.quota(TENANT, parts.period)
    assert [(meter.used, meter.held) for meter in quota.meters] == [(1, 2), (30, 1030), (0, 4)]
    await parts.end(running)
    parts.usage.stand_in.counting = True
    await parts.settlement.sweep()
    assert await parts.meter("upgrades") == (3, 0)
    for _ in range(2):
        await parts.accept()
    assert (await refused(parts)).problem is QUOTA_EXCEEDED


async def test_a_lost_state_is_rebuilt_from_all_the_work_there_is(
    parts: AdmissionParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.gateway.upgrades.accepted_store._PAGE", 4)
    parts.limit(upgrades=10)
    for _ in range(10):
        await parts.accept()
    await lose(parts)
    assert (await refused(parts)).problem is QUOTA_EXCEEDED
    assert await parts.meter("upgrades") == (0, 10)
    # With too much work the tenant is not admitted at all, rather than by a part of it.
    monkeypatch.setattr("services.gateway.quota.rebuild.MAX_WORK", 9)
    await lose(parts)
    assert (await refused(parts)).problem is UNAVAILABLE


async def test_a_plan_that_changes_while_a_state_is_rebuilt_counts(
    parts: AdmissionParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts.limit(upgrades=10)
    await parts.accept()
    rates = AcceptedWork.rates

    async def changed_meanwhile(work: AcceptedWork, tenant_id: str, since: datetime) -> dict[str, dict[str, int]]:
        monkeypatch.setattr(AcceptedWork, "rates", rates)
        await parts.set_limits(upgrades=2)
        return await rates(work, tenant_id, since)

    monkeypatch.setattr(AcceptedWork, "rates", changed_meanwhile)
    await lose(parts)
    await parts.accept()
    assert (await refused(parts)).problem is QUOTA_EXCEEDED


async def test_who_was_at_the_limit_before_redis_was_lost_still_is(parts: AdmissionParts) -> None:
    parts.admissions._accepted_per_minute = 3
    await accepted_before(parts, 50, 40, 30)
    problem = await refused(parts)
    assert problem.problem is RATE_LIMITED
    assert 5 <= int(problem.headers["Retry-After"]) <= 10


async def test_what_was_accepted_long_before_redis_was_lost_limits_nobody(parts: AdmissionParts) -> None:
    parts.admissions._accepted_per_minute = 3
    await accepted_before(parts, 70, 40, 30)
    await parts.accept()
    assert (await refused(parts)).problem is RATE_LIMITED


async def accepted_before(parts: AdmissionParts, *seconds: int) -> None:
    """Accepts upgrades that many seconds ago by Redis's clock, which rates use, and then empties Redis."""
    now = now_utc()
    for ago in seconds:
        parts.clock.now = now - timedelta(seconds=ago)
        await parts.accept()
    parts.clock.now = now
    await lose(parts)


async def test_without_usage_a_warm_tenant_goes_on_and_a_cold_one_is_told_to_wait(parts: AdmissionParts) -> None:
    parts.limit(upgrades=2)
    await parts.accept()
    parts.usage.stand_in.out = True
    await parts.accept()
    assert (await refused(parts)).problem is QUOTA_EXCEEDED
    await lose(parts)
    problem = await refused(parts)
    assert problem.problem is UNAVAILABLE
    assert problem.headers["Retry-After"]
    parts.usage.stand_in.out = False
    assert (await refused(parts)).problem is QUOTA_EXCEEDED


async def test_a_hold_that_nobody_recorded_is_given_back_when_it_is_due(parts: AdmissionParts) -> None:
    parts.limit(upgrades=1)
    await parts.admissions.admit(parts.hold())
    parts.clock.move(seconds=69)
    assert (await refused(parts)).problem is QUOTA_EXCEEDED
    parts.clock.move(seconds=1)
    # The next admission finds the due hold and takes its place.
    await parts.accept()
    assert await parts.meter("upgrades") == (0, 1)


async def test_a_hold_that_is_due_by_another_clock_stays_for_the_record_that_is_being_written(
    parts: AdmissionParts,
) -> None:
    hold = parts.hold()
    await parts.admissions.admit(hold)
    record = parts.record(hold)
    parts.clock.move(seconds=80)  # now a replica whose clock is 80 s ahead checks it
    looking = asyncio.create_task(parts.settlement.refresh(TENANT, hold.period, [hold.hold_id]))
    await parts.store.insert(record)
    await looking
    assert await parts.meter("upgrades") == (0, 1)


async def test_what_a_redis_that_hung_has_taken_is_given_back(parts: AdmissionParts) -> None:
    parts.limit(upgrades=1)
    await parts.admissions.quota(TENANT, parts.period)
    os.kill(parts.valkey.pid, signal.SIGSTOP)
    try:
        with pytest.raises(ProblemError) as refusal:
            await parts.admissions.admit(parts.hold())
        assert refusal.value.problem is UNAVAILABLE
    finally:
        os.kill(parts.valkey.pid, signal.SIGCONT)

    async def nothing_is_held() -> bool:
        return await parts.meter("upgrades") == (0, 0)

    await eventually(nothing_is_held)
    await parts.accept()


async def test_due_holds_of_tenants_that_nobody_asks_for_are_found(parts: AdmissionParts) -> None:
    await parts.admissions.admit(parts.hold())
    running = await parts.accept()
    parts.clock.move(seconds=71)
    parts.usage.stand_in.out = True
    assert await parts.due.sweep() == 1
    # Unrecorded holds are dropped without counters. Running work stays until its end is known.
    assert await parts.meter("upgrades") == (0, 1)
    parts.usage.stand_in.out = False
    assert await parts.due.sweep() == 0  # another replica has swept a moment ago
    await parts.redis.delete(redis_keys.DUE_SWEEP)
    assert await parts.due.sweep() == 1
    assert await parts.meter("upgrades") == (0, 1)
    await parts.end(running)
    await parts.settlement.sweep()
    assert await parts.meter("upgrades") == (1, 0)


async def test_an_end_that_settled_nothing_is_settled_by_the_sweep(parts: AdmissionParts) -> None:
    hold = await parts.accept()
    await parts.end(hold, settle=False)
    await parts.settlement.sweep()
    assert await parts.meter("tokens") == (30, 0)


async def test_a_hold_that_ends_before_it_is_taken_is_never_taken(parts: AdmissionParts) -> None:
    """The caller timed out and ended the hold; the request that takes it arrives after the one that ends it."""
    asked = EmbeddingsHold(hold_id="slow", tenant_id=TENANT, period=parts.period, embeddings=80, tokens=500)
    await parts.documents.end("slow", EmbeddingsHoldEnd())
    with pytest.raises(ProblemError) as refusal:
        await parts.documents.take(asked)
    assert refusal.value.problem is CONFLICT
    await parts.documents.end("slow", EmbeddingsHoldEnd())
    await parts.admissions.quota(TENANT, parts.period)
    assert await parts.meter("embeddings") == (0, 0)


async def test_a_hold_that_ends_while_it_is_taken_holds_nothing(
    parts: AdmissionParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = EmbeddingsHold(hold_id="race", tenant_id=TENANT, period=parts.period, embeddings=80, tokens=500)
    admit = parts.admissions.admit_document

    async def and_then_it_ends(hold: Hold) -> Admission:
        admission = await admit(hold)
        await parts.documents.end("race", EmbeddingsHoldEnd())
        return admission

    monkeypatch.setattr(parts.admissions, "admit_document", and_then_it_ends)
    with pytest.raises(ProblemError) as refusal:
        await parts.documents.take(asked)
    assert refusal.value.problem is CONFLICT

    async def nothing_is_held() -> bool:
        return await parts.meter("embeddings") == (0, 0)

    await eventually(nothing_is_held)


async def test_a_document_holds_its_embeddings(parts: AdmissionParts) -> None:
    parts.limit(embeddings=100)
    asked = EmbeddingsHold(hold_id="run-1", tenant_id=TENANT, period=parts.period, embeddings=80, tokens=500)
    await parts.documents.take(asked)
    await parts.documents.take(asked)
    assert await parts.meter("embeddings") == (0, 80)
    with pytest.raises(ProblemError) as refusal:
        await parts.documents.take(asked.model_copy(update={"hold_id": "run-2"}))
    assert refusal.value.extra["meter"] == "embeddings"
    assert await parts.held_documents.count({}) == 1
    await lose(parts)
    # A document without a hold has no record, so it is not in the rebuilt state.
    with pytest.raises(ProblemError):
        await parts.documents.take(asked.model_copy(update={"hold_id": "run-3"}))
    assert await parts.meter("embeddings") == (0, 80)
    parts.clock.move(hours=1)
    await parts.due.sweep()
    assert await parts.meter("embeddings") == (0, 80)
    await parts.documents.end("run-1", EmbeddingsHoldEnd(spent=[SpentEvent(event_id="e", embeddings=60, tokens=200)]))
    assert await parts.meter("embeddings") == (0, 60)
    await parts.settlement.sweep()
    assert await parts.meter("embeddings") == (0, 60)
    parts.usage.stand_in.counted.add("e")
    key = (TENANT, parts.period)
    counters = parts.usage.stand_in.quota(*key).counters
    parts.usage.stand_in.counters[key] = counters.model_copy(update={"embeddings": 60, "tokens": 200, "version": 1})
    await parts.settlement.sweep()
    assert await parts.meter("embeddings") == (60, 0)
    assert await parts.held_documents.count({"uncountedSince": {"$exists": True}}) == 0
    await parts.documents.end("run-1", EmbeddingsHoldEnd())
    await parts.documents.end("nobody's", EmbeddingsHoldEnd())
    assert await parts.meter("embeddings") == (60, 0)


async def test_a_hold_that_nobody_ends_is_given_up(parts: AdmissionParts) -> None:
    asked = {"tenant_id": TENANT, "period": parts.period, "embeddings": 2, "tokens": 5}
    await parts.documents.take(EmbeddingsHold(hold_id="search", lives_seconds=600, **asked))
    await parts.documents.take(EmbeddingsHold(hold_id="document", **asked))
    parts.clock.move(seconds=599)
    await parts.documents.forget_old()
    await parts.settlement.sweep()
    assert await parts.meter("embeddings") == (0, 4)
    parts.clock.move(seconds=2)
    await parts.documents.forget_old()
    await parts.settlement.sweep()
    assert await parts.meter("embeddings") == (0, 2)


async def test_documents_at_once_take_what_there_is(parts: AdmissionParts) -> None:
    parts.limit(embeddings=100)
    asked = [
        EmbeddingsHold(hold_id=f"run-{n}", tenant_id=TENANT, period=parts.period, embeddings=7, tokens=1)
        for n in range(40)
    ]
    answers = await asyncio.gather(*(parts.documents.take(one) for one in asked), return_exceptions=True)
    assert answers.count(None) == 14
    assert await parts.meter("embeddings") == (0, 98)


async def test_a_plan_that_changes_counts_at_once(parts: AdmissionParts) -> None:
    parts.limit(upgrades=1)
    await parts.accept()
    await refused(parts)
    await parts.set_limits(upgrades=2)
    await parts.accept()
    await parts.set_limits(upgrades=1)
    quota = await parts.admissions.quota(TENANT, parts.period)
    assert quota.meters[0].remaining == 0
    await refused(parts)


class Release:
    def __init__(self, *, stays: bool = False) -> None:
        self.events: list[str] = []
        self.stays = stays

    def __call__(self) -> None:
        self.events.append("released")

    async def withdraw(self) -> bool:
        self.events.append("stays" if self.stays else "taken back")
        return not self.stays


async def test_a_record_that_somebody_was_told_of_stays_with_its_hold(parts: AdmissionParts) -> None:
    told, untold = await parts.accept(), await parts.accept()
    assert await parts.store.keep(told.hold_id)
    assert [await parts.store.withdraw(hold.hold_id) for hold in (told, untold)] == [False, True]
    assert await parts.store.find(TENANT, told.hold_id) is not None
    assert not await parts.store.keep(untold.hold_id)
    assert await parts.store.withdraw(untold.hold_id)
    release, written = Release(stays=True), asyncio.Event()

    async def slow() -> Written:
        await written.wait()
        return Written()

    loop = asyncio.get_running_loop()
    with pytest.raises(StorageUnavailable):
        await record_in_time(slow, withdraw=release.withdraw, release=release, until=loop.time() + 0.05)
    written.set()

    async def is_over() -> bool:
        return bool(release.events)

    await eventually(is_over)
    assert release.events == ["stays"]


async def test_a_record_that_comes_too_late_is_taken_back(parts: AdmissionParts) -> None:
    release, written = Release(), asyncio.Event()

    async def slow() -> Written:
        await written.wait()
        return Written()

    loop = asyncio.get_running_loop()
    with pytest.raises(StorageUnavailable):
        await record_in_time(slow, withdraw=release.withdraw, release=release, until=loop.time() + 0.05)
    assert release.events == []
    written.set()

    async def done() -> bool:
        return release.events == ["taken back", "released"]

    await eventually(done)


async def test_a_record_that_nobody_knows_of_is_taken_back_before_its_hold(parts: AdmissionParts) -> None:
    release = Release()

    async def cut() -> Written:
        raise StorageUnavailable("cut")

    loop = asyncio.get_running_loop()
    with pytest.raises(StorageUnavailable):
        await record_in_time(cut, withdraw=release.withdraw, release=release, until=loop.time() + 5)

    async def done() -> bool:
        return release.events == ["taken back", "released"]

    await eventually(done)


async def test_a_process_that_slept_takes_its_record_back(parts: AdmissionParts) -> None:
    release = Release()

    async def at_once() -> Written:
        return Written()

    loop = asyncio.get_running_loop()
    with pytest.raises(StorageUnavailable):
        await record_in_time(at_once, withdraw=release.withdraw, release=release, until=loop.time() - 0.001)

    async def done() -> bool:
        return release.events == ["taken back", "released"]

    await eventually(done)
