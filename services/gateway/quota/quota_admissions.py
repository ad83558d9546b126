"""Admission by the state in Redis: builds it where it is missing, and says no in the words of the public API."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from datetime import datetime, timedelta
from typing import Any

from services.gateway.http.problems import ProblemError
from services.gateway.quota.admission import (
    Admission,
    Admit,
    Admitted,
    Claim,
    Hold,
    MeterState,
    QuotaState,
    Rate,
    Settled,
)
from services.gateway.quota.held_work import LOOK_AGAIN, EndedWork, HeldWork
from services.gateway.quota.rebuild import Rebuild, RebuildFailed
from services.gateway.quota.redis_scripts import AdmissionUnavailable
from services.gateway.quota.room_queue import WAIT_SECONDS, RoomQueue
from services.gateway.quota.settlement import Settlement
from services.gateway.quota.state import AdmissionState
from services.gateway.quota.usage_client import UsageUnavailable
from shared.contracts.contract import format_utc, now_utc
from shared.contracts.problems import QUOTA_EXCEEDED, RATE_LIMITED, UNAVAILABLE
from shared.contracts.quota import Meter, QuotaPeriod
from shared.observability.logs import get_logger
from shared.observability.metrics import ADMISSIONS
from shared.storage.documents import StorageUnavailable

REBUILD_WITHIN_SECONDS = 8.0
REFRESH_WITHIN_SECONDS = 2.0
_REFRESHED_LATELY_SECONDS = 1.0
_RELEASE_ATTEMPTS = 30
_RELEASE_PAUSE_SECONDS = 1.0
_SILENCE_SECONDS = 2.0
_MOST_IN_BACKGROUND = 5_000
_COLD_ATTEMPTS = 3
_HELD_PAUSE_SECONDS = 5
_OLD_AFTER_SECONDS = 30.0
_PART_OF_TIME_TO_WAIT = 0.1

log = get_logger(__name__)


class QuotaAdmissions:
    """`Admissions`, and what is read of the same state. Component: `stop` lets go of holds that were given back."""

    def __init__(
        self,
        state: AdmissionState,
        rebuild: Rebuild,
        settlement: Settlement,
        *,
        accepted_per_minute: int,
        clock: Callable[[], datetime] = now_utc,
    ) -> None:
        self._state = state
        self._rebuild = rebuild
        self._settlement = settlement
        self._accepted_per_minute = accepted_per_minute
        self._clock = clock
        self._room = RoomQueue()
        self._background: set[asyncio.Task[None]] = set()

    async def start(self) -> None: ...

    async def stop(self, grace_seconds: float) -> None:
        if self._background:
            await asyncio.wait(self._background, timeout=grace_seconds)
        for task in self._background:
            task.cancel()

    async def admit(self, hold: Hold) -> Admission:
        """Takes the hold, unless its key is claimed. Raises ProblemError and takes nothing."""
        answer, at = await self._decide(hold, self._accepted_per_minute)
        if _only_holds_are_in_the_way(answer, hold):
            answer, at = await self._when_there_is_room(hold, answer, at)
        rate = Rate.of(answer.rate, self._accepted_per_minute)
        ADMISSIONS.labels(outcome=answer.verdict).inc()
        if answer.verdict == "replay":
            return Admission(at, rate, Claim(answer.claimed_by, answer.claimed_body))
        if answer.verdict == "admitted":
            return Admission(at, rate)
        raise self._refusal(answer, hold, rate)

    async def admit_document(self, hold: Hold) -> Admission:
        """As `admit`, for the indexing of a document, which is not rate limited.

        Not to be asked again with the same hold where no answer came.
        """
        answer, at = await self._decide(hold, 0)
        ADMISSIONS.labels(outcome=answer.verdict).inc()
        if answer.verdict != "admitted":
            raise self._refusal(answer, hold, None)
        return Admission(at, None)

    def release(self, hold: Hold) -> None:
        """Gives the hold back, again and again while Redis is out: nothing else would for as long as it may live."""
        self._in_background(self._release(hold))

    def restore(self, hold: Hold, claim: Claim, life: timedelta) -> None:
        """One try: without it the next request with the key finds the earlier one by the records once more."""
        self._in_background(self._restore(hold, claim, life))

    async def forget(self, hold: Hold, claim: Claim) -> None:
        async with _told_as_problems():
            await self._state.forget_claim(hold.tenant_id, hold.key_hash or "", claim.upgrade_id)

    async def settle_document(self, tenant_id: str, period: str, work: HeldWork) -> None:
        """Makes the hold of a document that is done with what was really used. As `settle`."""
        tokens, embeddings = sum(item.tokens for item in work.spent), sum(item.embeddings for item in work.spent)
        settled = Settled(work.hold_id, 0, tokens, embeddings)
        with contextlib.suppress(AdmissionUnavailable):
            await self._state.settle(tenant_id, period, [settled], _ms(self._clock() + LOOK_AGAIN))

    async def settle(self, ended: Sequence[EndedWork]) -> None:
        """Makes holds of ended upgrades what was really used. What fails here, the sweep does later."""
        by_state: dict[tuple[str, str], list[Settled]] = {}
        for work in ended:
            by_state.setdefault((work.tenant_id, work.period), []).append(work.settled())
        due = _ms(self._clock() + LOOK_AGAIN)
        with contextlib.suppress(AdmissionUnavailable):
            await asyncio.gather(
                *(self._state.settle(tenant_id, period, some, due) for (tenant_id, period), some in by_state.items())
            )

    async def quota(self, tenant_id: str, period: str) -> QuotaState:
        """The tenant's state as of one moment, with what usage has counted lately. Raises ProblemError."""
        if self._settlement.seconds_since(tenant_id, period) > _REFRESHED_LATELY_SECONDS:
            await self._refresh(tenant_id, period, ())
        async with _told_as_problems():
            for _ in range(_COLD_ATTEMPTS):
                state = await self._state.read(tenant_id, period, _ms(self._clock()))
                if state is not None and not state.due:
                    return state
                if state is None:
                    await self._rebuilt(tenant_id, period)
                elif not await self._refresh(tenant_id, period, state.due):
                    return state
            if state is not None:
                return state
        raise _unavailable()

    async def _decide(self, hold: Hold, most_accepted: int) -> tuple[Admitted, float]:
        """What the script says about the hold, and when (monotonic seconds) it was asked at the earliest."""
        async with _told_as_problems():
            for _ in range(_COLD_ATTEMPTS):
                at = time.monotonic()
                answer = await self._admit(hold, most_accepted)
                if answer.verdict == "cold":
                    await self._rebuilt(hold.tenant_id, hold.period)
                    continue
                if answer.verdict == "quota_exceeded" and await self._may_have_changed(hold, answer):
                    at = time.monotonic()
                    answer = await self._admit(hold, most_accepted)
                elif answer.due or self._is_old(hold):
                    self._in_background(self._look_at(hold, answer.due))
                if answer.verdict != "cold":
                    return answer, at
        raise _unavailable()

    async def _when_there_is_room(self, hold: Hold, answer: Admitted, at: float) -> tuple[Admitted, float]:
        """The answer once the hold fits, or the last refusal. Takes at most a part of the upgrade's own time."""

        async def ask_again() -> bool:
            nonlocal answer, at
            answer, at = await self._decide(hold, self._accepted_per_minute)
            return not _only_holds_are_in_the_way(answer, hold)

        left = (hold.expires_at - self._clock()).total_seconds()
        await self._room.wait(hold.tenant_id, hold.period, min(WAIT_SECONDS, left * _PART_OF_TIME_TO_WAIT), ask_again)
        return answer, at

    async def _admit(self, hold: Hold, most_accepted: int) -> Admitted:
        """Asks once. Where no answer came to what was sent, whatever was taken is given back."""
        try:
            return await self._state.admit(self._ask(hold, most_accepted))
        except AdmissionUnavailable as error:
            if error.may_have_run:
                self._in_background(self._release_after_silence(hold))
            raise

    def _ask(self, hold: Hold, most_accepted: int) -> Admit:
        return Admit(
            tenant_id=hold.tenant_id,
            period=hold.period,
            hold_id=hold.upgrade_id,
            size=hold.size,
            now_ms=_ms(self._clock()),
            due_ms=_ms(hold.expires_at),
            subject=hold.subject,
            most_accepted=most_accepted,
            key_hash=hold.key_hash,
            body_hash=hold.body_hash or "",
        )

    def _is_old(self, hold: Hold) -> bool:
        """Whether what usage has counted of the tenant was not asked for a while: it may be more than is known here."""
        return self._settlement.seconds_since(hold.tenant_id, hold.period) > _OLD_AFTER_SECONDS

    async def _may_have_changed(self, hold: Hold, answer: Admitted) -> bool:
        """Before a no: takes over what was counted meanwhile, and looks at holds whose time has come."""
        lately = self._settlement.seconds_since(hold.tenant_id, hold.period) <= _REFRESHED_LATELY_SECONDS
        if lately and not answer.due:
            return False
        changed = await self._refresh(hold.tenant_id, hold.period, answer.due)
        # A hold that seems to be nobody's is one only when it is missed again: who would be refused for it waits.
        pause = self._settlement.sure_in_seconds(answer.due)
        if pause == 0.0:
            return changed
        await asyncio.sleep(pause)
        return await self._refresh(hold.tenant_id, hold.period, answer.due) or changed

    async def _refresh(self, tenant_id: str, period: str, due: tuple[str, ...]) -> bool:
        """Whether the state was brought up to date; a state that is warm serves without, too."""
        try:
            async with asyncio.timeout(REFRESH_WITHIN_SECONDS):
                await self._settlement.refresh(tenant_id, period, due)
        except (UsageUnavailable, StorageUnavailable, AdmissionUnavailable, TimeoutError):
            return False
        return True

    async def _look_at(self, hold: Hold, due: tuple[str, ...]) -> None:
        await self._refresh(hold.tenant_id, hold.period, due)

    async def _rebuilt(self, tenant_id: str, period: str) -> None:
        async with asyncio.timeout(REBUILD_WITHIN_SECONDS):
            await self._rebuild(tenant_id, period)
        self._settlement.note(tenant_id, period)

    async def _release(self, hold: Hold) -> None:
        for _ in range(_RELEASE_ATTEMPTS):
            try:
                await self._state.release(
                    hold.tenant_id, hold.period, hold.upgrade_id, subject=hold.subject, key_hash=hold.key_hash
                )
                return
            except AdmissionUnavailable:
                await asyncio.sleep(_RELEASE_PAUSE_SECONDS)
        log.warning("hold_not_released", hold_id=hold.upgrade_id)

    async def _release_after_silence(self, hold: Hold) -> None:
        """Twice: a script that was sent to a Redis that hung may still run after the first release."""
        await self._release(hold)
        await asyncio.sleep(_SILENCE_SECONDS)
        await self._release(hold)

    async def _restore(self, hold: Hold, claim: Claim, life: timedelta) -> None:
        with contextlib.suppress(AdmissionUnavailable):
            await self._state.restore_claim(hold.tenant_id, hold.key_hash or "", hold.upgrade_id, claim, life)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        if len(self._background) >= _MOST_IN_BACKGROUND:
            work.close()
            log.warning("admission_work_dropped", under_way=len(self._background))
            return
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _refusal(self, answer: Admitted, hold: Hold, rate: Rate | None) -> ProblemError:
        headers = rate.headers() if rate else {}
        if answer.meter is None:
            seconds = rate.frees_seconds if rate else 1
            detail = f"At most {self._accepted_per_minute} upgrades are accepted in any 60 s for one user."
            return ProblemError(RATE_LIMITED, detail, headers={**headers, "Retry-After": str(max(1, seconds))})
        need: int = getattr(hold.size, answer.meter.meter.value)
        return _quota_exceeded(answer.meter, need, hold.period, self._clock(), headers)


def _only_holds_are_in_the_way(answer: Admitted, hold: Hold) -> bool:
    """Whether the hold does not fit now, and may fit when open holds become what was used.

    An upgrade that ends becomes one used upgrade: on that meter nothing is won by waiting.
    """
    if answer.verdict != "quota_exceeded" or answer.meter is None or answer.meter.meter is Meter.UPGRADES:
        return False
    return _fits_without_holds(answer.meter, getattr(hold.size, answer.meter.meter.value))


def _fits_without_holds(meter: MeterState, need: int) -> bool:
    return meter.limit is not None and meter.held > 0 and meter.used + need <= meter.limit


def _quota_exceeded(meter: MeterState, need: int, period: str, now: datetime, headers: dict[str, str]) -> ProblemError:
    """The refusal that says which meter has no room, and when it starts anew."""
    resets_at = QuotaPeriod.of(period).end
    # What is held may be given back any moment; what is used stays until the month is over.
    wait = _HELD_PAUSE_SECONDS if _fits_without_holds(meter, need) else max(1, round((resets_at - now).total_seconds()))
    return ProblemError(
        QUOTA_EXCEEDED,
        f"The {meter.meter} of this month do not suffice for this request.",
        headers={**headers, "Retry-After": str(wait)},
        extra={
            "meter": meter.meter.value,
            "limit": meter.limit,
            "used": meter.used,
            "held": meter.held,
            "resetsAt": format_utc(resets_at),
        },
    )


@contextlib.asynccontextmanager
async def _told_as_problems() -> AsyncIterator[None]:
    try:
        yield
    except (AdmissionUnavailable, UsageUnavailable, StorageUnavailable, RebuildFailed, TimeoutError) as error:
        log.warning("admission_unavailable", error=type(error).__name__)
        raise _unavailable() from None


def _unavailable() -> ProblemError:
    return ProblemError(UNAVAILABLE, "Nothing was accepted. Try again.", headers={"Retry-After": "2"})


def _ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)
