"""Accepting an upgrade, with fakes for its ports: what is recorded, replayed, refused and released."""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.gateway.http.problems import IdempotencyKeyReused, ProblemError
from services.gateway.identity.caller import Caller, Role
from services.gateway.quota.admission import Admission, Claim, Rate
from services.gateway.quota.holds import AnswerLimits, Hold
from services.gateway.upgrades import idempotency_keys
from services.gateway.upgrades.accept import Acceptance, AcceptUpgrade, EarlierErased
from services.gateway.upgrades.accepted_record import AcceptedRecord
from services.gateway.upgrades.idempotency_keys import KeyTaken
from shared.contracts.problems import QUOTA_EXCEEDED, RATE_LIMITED, UNAVAILABLE, Problem
from shared.contracts.token_bounds import RECENT_MESSAGES
from shared.contracts.upgrade_http import UpgradeRequest
from shared.contracts.upgrade_tasks import Stage
from shared.privacy.placeholders import PlaceholderMap
from shared.privacy.sealing import Vault
from shared.storage.documents import StorageUnavailable
from tests.conftest import eventually

CALLER = Caller("tenant", "key-1", Role.MEMBER, "credential-1")
VAULT = Vault([b"v" * 32])
RATE = Rate(limit=60, remaining=59, frees_seconds=60)
MAIL = "Write to ann@example.com"

LONG_TALK = [{"role": "user", "content": "Hello"}] * (RECENT_MESSAGES + 1)


class FakeRecords:
    """`AcceptedRecords` in a dict. `events` are the changes in their order; `out` makes each insert fail."""

    def __init__(self) -> None:
        self.stored: dict[str, AcceptedRecord] = {}
        self.events: list[str] = []
        self.out = False

    async def insert(self, record: AcceptedRecord) -> None:
        if self.out:
            raise StorageUnavailable("out")
        if record.key_hash is not None and await self.find_by_key(record.tenant_id, record.key_hash):
            raise KeyTaken
        self.stored[record.upgrade_id] = record

    async def find_by_key(self, tenant_id: str, key_hash: str) -> AcceptedRecord | None:
        found = (r for r in self.stored.values() if (r.tenant_id, r.key_hash) == (tenant_id, key_hash))
        return next(found, None)

    async def find(self, tenant_id: str, upgrade_id: str) -> AcceptedRecord | None:
        return self.stored.get(upgrade_id)

    async def release_key(self, record: AcceptedRecord) -> None:
        self.change(record.upgrade_id, key_hash=None)

    async def keep(self, upgrade_id: str) -> bool:
        if upgrade_id in self.stored:
            self.change(upgrade_id, kept=True)
        return upgrade_id in self.stored

    async def withdraw(self, upgrade_id: str) -> bool:
        if upgrade_id in self.stored and self.stored[upgrade_id].kept:
            self.events.append("kept")
            return False
        self.stored.pop(upgrade_id, None)
        self.events.append("withdrawn")
        return True

    def change(self, upgrade_id: str, **fields: Any) -> None:
        self.stored[upgrade_id] = self.stored[upgrade_id].model_copy(update=fields)


class FakeAdmissions:
    """`Admissions` that admits everything at `at`, except what is claimed or while there is a `refusal`."""

    def __init__(self, events: list[str]) -> None:
        self.events = events
        self.claims: dict[str, Claim] = {}
        self.held: dict[str, Hold] = {}
        self.refusal: Problem | None = None
        self.at: Callable[[], float] = time.monotonic

    async def admit(self, hold: Hold) -> Admission:
        if hold.key_hash in self.claims:
            return Admission(self.at(), RATE, self.claims[hold.key_hash])
        if self.refusal is not None:
            raise ProblemError(self.refusal, "No.")
        self.held[hold.hold_id] = hold
        if hold.key_hash is not None:
            self.claims[hold.key_hash] = Claim(hold.hold_id, hold.body_hash or "")
        return Admission(self.at(), RATE)

    def release(self, hold: Hold) -> None:
        self.events.append("released")
        del self.held[hold.hold_id]
        if hold.key_hash is not None and self.claims[hold.key_hash].upgrade_id == hold.hold_id:
            del self.claims[hold.key_hash]

    async def release_claim(self, hold: Hold, claim: Claim) -> None:
        self.events.append("claim released")
        assert self.claims.pop(hold.key_hash or "") == claim

    def restore_claim(self, hold: Hold, claim: Claim, life: timedelta) -> None:
        assert timedelta(0) < life <= timedelta(days=1)
        self.events.append("claim restored")
        self.claims[hold.key_hash or ""] = claim


class FakeDocuments:
    def __init__(self) -> None:
        self.present = False

    async def exist(self, tenant_id: str) -> bool:
        return self.present


class World:
    """The use case on its fakes, and a clock that tests move."""

    def __init__(self) -> None:
        self.records = FakeRecords()
        self.events = self.records.events
        self.admissions = FakeAdmissions(self.events)
        self.documents = FakeDocuments()
        self.now = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
        self.accept_upgrade = AcceptUpgrade(
            records=self.records,
            admissions=self.admissions,
            documents=self.documents,
            vault=VAULT,
            limits=AnswerLimits(summary_tokens=600, rewrite_tokens=2000),
            deadline_seconds=60,
            replica_id="replica-1",
            clock=lambda: self.now,
        )

    async def accept(self, prompt: str = MAIL, key: str | None = None, **fields: Any) -> Acceptance:
        request = UpgradeRequest.model_validate({"userPrompt": prompt} | fields)
        return await self.accept_upgrade(CALLER, request, idempotency_key=key, traceparent="trace")

    async def refused(self, expected: type[Exception], **request: Any) -> Exception:
        """The exception, after which nothing is recorded or held beside what was before."""
        before = set(self.records.stored), set(self.admissions.held)
        with pytest.raises(expected) as refusal:
            await self.accept(**request)

        async def nothing_is_left() -> bool:
            return before == (set(self.records.stored), set(self.admissions.held))

        await eventually(nothing_is_left)
        return refusal.value


@pytest.fixture
def world() -> World:
    return World()


async def test_an_accepted_upgrade_is_recorded_with_its_hold(world: World) -> None:
    accepted = await world.accept(userId="ann")
    [record], [hold] = world.records.stored.values(), world.admissions.held.values()
    assert (accepted.record, accepted.replayed, accepted.rate, accepted.user_prompt) == (record, False, RATE, MAIL)
    assert (record.tenant_id, record.credential_id, record.period) == ("tenant", "credential-1", "2026-11")
    assert (record.created_at, record.deadline) == (world.now, world.now + timedelta(seconds=60))
    assert (record.key_hash, record.body_hash, record.traceparent) == (None, None, "trace")
    assert record.first_task() == accepted.task
    assert accepted.task.reply_to == "replica-1"
    assert (hold.hold_id, hold.period, hold.subject) == (record.upgrade_id, "2026-11", record.user_ref)
    assert hold.expires_at == world.now + timedelta(seconds=70)
    assert record.held_work().size == hold.size
    assert hold.size.upgrades == 1
    assert world.events == []


async def test_without_a_user_the_rate_is_the_credentials(world: World) -> None:
    await world.accept()
    [hold] = world.admissions.held.values()
    assert hold.subject == "credential-1"


async def test_the_same_key_replays_the_upgrade(world: World) -> None:
    first = await world.accept(key="k")
    again = await world.accept(key="k")
    assert again.replayed
    assert (again.record.upgrade_id, again.task, again.rate) == (first.record.upgrade_id, first.task, RATE)
    assert len(world.records.stored) == len(world.admissions.held) == 1
    assert world.records.stored[first.record.upgrade_id].kept
    assert "k" not in (first.record.key_hash, first.record.body_hash)


async def test_a_repeat_waits_for_the_record_of_the_first_request(world: World) -> None:
    first = await world.accept(key="k")
    del world.records.stored[first.record.upgrade_id]
    waiting = asyncio.create_task(world.accept(key="k"))
    await asyncio.sleep(0.02)
    assert not waiting.done()
    world.records.stored[first.record.upgrade_id] = first.record
    again = await waiting
    assert (again.record.upgrade_id, again.replayed) == (first.record.upgrade_id, True)


async def test_a_claim_without_a_record_is_released(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotency_keys, "_CLAIMANT_RECORDS_WITHIN_SECONDS", 0.02)
    first = await world.accept(key="k")
    del world.records.stored[first.record.upgrade_id]
    second = await world.accept(key="k")
    assert not second.replayed
    assert second.record.upgrade_id != first.record.upgrade_id
    assert world.events == ["claim released"]


async def test_a_key_with_another_body_is_refused(world: World) -> None:
    await world.accept(key="k")
    await world.refused(IdempotencyKeyReused, prompt="Something else", key="k")


async def test_an_erased_upgrade_is_neither_replayed_nor_made_again(world: World) -> None:
    first = await world.accept(key="k")
    world.records.change(first.record.upgrade_id, erased_at=world.now, kept=True)
    await world.refused(EarlierErased, key="k")


async def test_after_a_day_the_key_makes_a_new_upgrade(world: World) -> None:
    first = await world.accept(key="k")
    world.admissions.claims.clear()
    world.now += timedelta(hours=24, minutes=1)
    second = await world.accept(prompt="Something else", key="k")
    assert not second.replayed
    assert len(world.records.stored) == 2
    assert world.records.stored[first.record.upgrade_id].key_hash is None


@pytest.mark.parametrize("problem", [RATE_LIMITED, QUOTA_EXCEEDED, UNAVAILABLE], ids=lambda problem: problem.code)
async def test_what_is_not_admitted_is_not_recorded(world: World, problem: Problem) -> None:
    world.admissions.refusal = problem
    refusal = await world.refused(ProblemError, key="k")
    assert isinstance(refusal, ProblemError)
    assert refusal.problem is problem
    assert world.events == []


async def test_a_repeat_without_its_claim_is_replayed_even_without_room(world: World) -> None:
    first = await world.accept(key="k")
    world.admissions.claims.clear()
    world.admissions.refusal = QUOTA_EXCEEDED
    again = await world.accept(key="k")
    assert (again.record.upgrade_id, again.replayed, again.rate) == (first.record.upgrade_id, True, None)
    assert world.events == ["claim restored"]


async def test_a_repeat_without_its_claim_takes_no_second_hold(world: World) -> None:
    first = await world.accept(key="k")
    world.admissions.claims.clear()
    again = await world.accept(key="k")
    assert (again.record.upgrade_id, again.replayed) == (first.record.upgrade_id, True)
    assert list(world.admissions.held) == [first.record.upgrade_id]
    assert world.events == ["released", "claim restored"]
    assert [claim.upgrade_id for claim in world.admissions.claims.values()] == [first.record.upgrade_id]


async def test_while_the_store_is_out_the_hold_is_released(world: World) -> None:
    world.records.out = True
    await world.refused(StorageUnavailable, key="k")
    assert world.events == ["withdrawn", "released"]
    assert world.admissions.claims == {}


async def test_a_record_that_is_too_late_is_withdrawn_and_its_hold_released(world: World) -> None:
    world.admissions.at = lambda: time.monotonic() - 2.6
    await world.refused(StorageUnavailable, key="k")
    assert world.events == ["withdrawn", "released"]


async def test_a_record_that_is_too_late_stays_when_a_repeat_was_answered_with_it(world: World) -> None:
    world.admissions.at = lambda: time.monotonic() - 2.6
    insert = world.records.insert

    async def insert_and_keep(record: AcceptedRecord) -> None:
        await insert(record)
        await world.records.keep(record.upgrade_id)

    world.records.insert = insert_and_keep  # type: ignore[method-assign]
    with pytest.raises(StorageUnavailable):
        await world.accept(key="k")

    async def is_kept() -> bool:
        return world.events == ["kept"]

    await eventually(is_kept)
    assert list(world.records.stored) == list(world.admissions.held)


@pytest.mark.parametrize(
    ("documents", "fields", "itinerary"),
    [
        (False, {}, [Stage.UPGRADER]),
        (True, {}, [Stage.RAG, Stage.UPGRADER]),
        (True, {"options": {"enableRAG": False}}, [Stage.UPGRADER]),
        (True, {"conversationHistory": LONG_TALK}, list(Stage)),
        (False, {"conversationHistory": LONG_TALK}, [Stage.SUMMARIZER, Stage.UPGRADER]),
        (False, {"conversationHistory": LONG_TALK[:RECENT_MESSAGES]}, [Stage.UPGRADER]),
        (
            True,
            {
                "conversationHistory": LONG_TALK,
                "options": {"enableSummarization": False},
            },
            [Stage.RAG, Stage.UPGRADER],
        ),
    ],
)
async def test_the_itinerary_has_the_stages_that_the_request_needs(
    world: World, documents: bool, fields: dict[str, Any], itinerary: list[Stage]
) -> None:
    world.documents.present = documents
    accepted = await world.accept(**fields)
    assert accepted.task.itinerary == itinerary
    [hold] = world.admissions.held.values()
    assert (hold.size.embeddings > 0) == (Stage.RAG in itinerary)
    assert accepted.record.hold
    assert list(accepted.record.hold.stages) == itinerary


@pytest.mark.parametrize("redaction", [True, False])
async def test_values_travel_sealed_and_only_with_redaction_off(world: World, redaction: bool) -> None:
    history = [{"role": "user", "content": "I am bob@example.com"}]
    options = {"enablePIIRedaction": redaction}
    accepted = await world.accept(conversationHistory=history, options=options)
    record, task = accepted.record, accepted.task
    # The history is redacted first, so its placeholders stay the same as a conversation grows.
    assert task.user_prompt == "Write to <EMAIL_2>"
    assert task.conversation_history[0].content == "I am <EMAIL_1>"
    assert "example.com" not in record.task
    assert record.sealed_pii is not None
    opened = VAULT.open(record.sealed_pii, tenant_id="tenant", subject_id=record.upgrade_id)
    assert PlaceholderMap.from_json(opened).values() == {"<EMAIL_1>": "bob@example.com", "<EMAIL_2>": "ann@example.com"}
    assert task.sealed_pii == (None if redaction else record.sealed_pii)


async def test_without_values_nothing_is_sealed(world: World) -> None:
    accepted = await world.accept(prompt="Write about rain", options={"enablePIIRedaction": False})
    assert accepted.record.sealed_pii is accepted.task.sealed_pii is None
