"""Admission by the state in Redis: rebuilds a missing state, and refuses with the problems of the public API."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from datetime import datetime, timedelta
from typing import Any

from services.gateway.http.problems import ProblemError
from services.gateway.quota.admission import Admission, Claim, MeterState, QuotaState, Rate
from services.gateway.quota.held_work import CHECK_AGAIN_AFTER, EndedUpgrade
from services.gateway.quota.holds import Hold, HoldSettlement
from services.gateway.quota.rebuild import Rebuild, RebuildFailed
from services.gateway.quota.redis_scripts import AdmissionUnavailable
from services.gateway.quota.room_queue import WAIT_SECONDS, RoomQueue
from services.gateway.quota.settlement import Settlement
from services.gateway.quota.state import AdmissionState, AdmitAnswer
from services.gateway.quota.usage_client import UsageUnavailable
from shared.contracts.admission_state import to_ms
from shared.contracts.contract import format_utc, now_utc
from shared.contracts.problems import QUOTA_EXCEEDED, RATE_LIMITED, UNAVAILABLE
from shared.contracts.quota import Meter, QuotaPeriod
from shared.observability.logs import get_logger
from shared.observability.metrics import ADMISSIONS
from shared.storage.documents import StorageUnavailable

_REBUILD_WITHIN_SECONDS = 8.0
_REFRESH_WITHIN_SECONDS = 2.0
_RECENT_SECONDS = 1.0
_OUTDATED_AFTER_SECONDS = 30.0
_RELEASE_ATTEMPTS = 30
_RELEASE_PAUSE_SECONDS = 1.0
_SILENCE_SECONDS = 2.0
_MAX_BACKGROUND_TASKS = 5_000
_COLD_ATTEMPTS = 3
_RETRY_WHEN_HELD_SECONDS = 5
_PART_OF_TIME_TO_WAIT = 0.1

log = get_logger(__name__)


class QuotaAdmissions:
    """`Admissions`, and readings of the same state. Component: `stop` waits for releases that are under way."""

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
        answer, at = await self._decide(hold, self._accepted_per_minute)
        if _only_holds_are_in_the_way(answer, hold):
            answer, at = await self._when_there_is_room(hold, answer, at)
        rate = Rate.of(answer.rate, self._accepted_per_minute)
        ADMISSIONS.labels(outcome=answer.verdict).inc()
        if answer.verdict not in ("admitted", "replay"):
            raise self._refusal(answer, hold, rate)
        return Admission(at, rate, answer.claim)

    async def admit_document(self, hold: Hold) -> Admission:
        """As `admit`, for the indexing of a document, which is not rate limited.

        After a failure the hold is released; a retry needs a hold with another id.
        """
        answer, at = await self._decide(hold, 0)
        ADMISSIONS.labels(outcome=answer.verdict).inc()
        if answer.verdict != "admitted":
            raise self._refusal(answer, hold, None)
        return Admission(at, None)

    def release(self, hold: Hold) -> None:
        """Retries while Redis is down, since the hold would otherwise stay until it is due."""
        self._in_background(self._release(hold))

    async def release_claim(self, hold: Hold, claim: Claim) -> None:
        async with _outages_as_unavailable():
            await self._state.release_claim(hold.tenant_id, hold.key_hash or "", claim.upgrade_id)

    def restore_claim(self, hold: Hold, claim: Claim, life: timedelta) -> None:
        """Tries once. If that fails, the next request with the key finds its owner in the records again."""
        self._in_background(self._restore_claim(hold, claim, life))

    async def settle(self, ended: Sequence[EndedUpgrade]) -> None:
        """Replaces the holds of ended upgrades by their real usage. After a failure the settlement sweep does it."""
        by_state: dict[tuple[str, str], list[HoldSettlement]] = {}
        for upgrade in ended:
            by_state.setdefault((upgrade.tenant_id, upgrade.period), []).append(upgrade.settlement())
        await asyncio.gather(
            *(self.settle_holds(tenant_id, period, some) for (tenant_id, period), some in by_state.items())
        )

    async def settle_holds(self, tenant_id: str, period: str, settlements: Sequence[HoldSettlement]) -> None:
        """As `settle`, for holds of one tenant and period."""
        with contextlib.suppress(AdmissionUnavailable):
            await self._state.settle(tenant_id, period, settlements, to_ms(self._clock() + CHECK_AGAIN_AFTER))

    async def quota(self, tenant_id: str, period: str) -> QuotaState:
        """The tenant's state, with counters at most a second old while usage answers. Raises ProblemError."""
        if self._settlement.seconds_since_refresh(tenant_id, period) > _RECENT_SECONDS:
            await self._refresh(tenant_id, period, ())
        async with _outages_as_unavailable():
            for _ in range(_COLD_ATTEMPTS):
                state = await self._state.read(tenant_id, period, to_ms(self._clock()))
                if state is None:
                    await self._rebuild_state(tenant_id, period)
                elif not state.due or not await self._refresh(tenant_id, period, state.due):
                    return state
            if state is not None:
                return state
        raise _unavailable()

    async def _decide(self, hold: Hold, most_accepted: int) -> tuple[AdmitAnswer, float]:
        """The verdict, which is not `cold`, and the monotonic time just before the script was sent."""
        async with _outages_as_unavailable():
            for _ in range(_COLD_ATTEMPTS):
                at = time.monotonic()
                answer = await self._admit(hold, most_accepted)
                if answer.verdict == "cold":
                    await self._rebuild_state(hold.tenant_id, hold.period)
                    continue
                if answer.verdict == "quota_exceeded" and await self._bring_up_to_date(hold, answer.due):
                    at = time.monotonic()
                    answer = await self._admit(hold, most_accepted)
                elif answer.due or self._is_outdated(hold):
                    self._in_background(self._refresh_for(hold, answer.due))
                if answer.verdict != "cold":
                    return answer, at
        raise _unavailable()

    async def _when_there_is_room(self, hold: Hold, answer: AdmitAnswer, at: float) -> tuple[AdmitAnswer, float]:
        """The answer once the hold fits, or the last refusal. Takes at most a part of the upgrade's own time."""

        async def ask_again() -> bool:
            nonlocal answer, at
            answer, at = await self._decide(hold, self._accepted_per_minute)
            return not _only_holds_are_in_the_way(answer, hold)

        left = (hold.expires_at - self._clock()).total_seconds()
        await self._room.wait(hold.tenant_id, hold.period, min(WAIT_SECONDS, left * _PART_OF_TIME_TO_WAIT), ask_again)
        return answer, at

    async def _admit(self, hold: Hold, most_accepted: int) -> AdmitAnswer:
        """Runs the script. If it may have run without an answer, the hold is released."""
        try:
            return await self._state.admit(hold, now_ms=to_ms(self._clock()), most_accepted=most_accepted)
        except AdmissionUnavailable as error:
            if error.may_have_run:
                self._in_background(self._release_after_silence(hold))
            raise

    def _is_outdated(self, hold: Hold) -> bool:
        return self._settlement.seconds_since_refresh(hold.tenant_id, hold.period) > _OUTDATED_AFTER_SECONDS

    async def _bring_up_to_date(self, hold: Hold, due: tuple[str, ...]) -> bool:
        """Refreshes the state before a refusal; False when there is nothing to refresh or it failed."""
        recent = self._settlement.seconds_since_refresh(hold.tenant_id, hold.period) <= _RECENT_SECONDS
        if recent and not due:
            return False
        changed = await self._refresh(hold.tenant_id, hold.period, due)
        # A due hold may turn out to be unrecorded at the second check: that decides whether there is room.
        if await self._settlement.unrecorded.wait_for_second_check(due):
            changed = await self._refresh(hold.tenant_id, hold.period, due) or changed
        return changed

    async def _refresh(self, tenant_id: str, period: str, due: tuple[str, ...]) -> bool:
        """Whether the state was refreshed in time. It admits without a refresh too."""
        try:
            async with asyncio.timeout(_REFRESH_WITHIN_SECONDS):
                await self._settlement.refresh(tenant_id, period, due)
        except (UsageUnavailable, StorageUnavailable, AdmissionUnavailable, TimeoutError):
            return False
        return True

    async def _refresh_for(self, hold: Hold, due: tuple[str, ...]) -> None:
        await self._refresh(hold.tenant_id, hold.period, due)

    async def _rebuild_state(self, tenant_id: str, period: str) -> None:
        async with asyncio.timeout(_REBUILD_WITHIN_SECONDS):
            await self._rebuild(tenant_id, period)
        self._settlement.note_refresh(tenant_id, period)

    async def _release(self, hold: Hold) -> None:
        for _ in range(_RELEASE_ATTEMPTS):
            try:
                await self._state.release(
                    hold.tenant_id, hold.period, hold.hold_id, subject=hold.subject, key_hash=hold.key_hash
                )
                return
            except AdmissionUnavailable:
                await asyncio.sleep(_RELEASE_PAUSE_SECONDS)
        log.warning("hold_not_released", hold_id=hold.hold_id)

    async def _release_after_silence(self, hold: Hold) -> None:
        """Releases twice: a script that was sent to a hanging Redis may still run after the first release."""
        await self._release(hold)
        await asyncio.sleep(_SILENCE_SECONDS)
        await self._release(hold)

    async def _restore_claim(self, hold: Hold, claim: Claim, life: timedelta) -> None:
        with contextlib.suppress(AdmissionUnavailable):
            await self._state.restore_claim(hold.tenant_id, hold.key_hash or "", hold.hold_id, claim, life)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        if len(self._background) >= _MAX_BACKGROUND_TASKS:
            work.close()
            log.warning("admission_work_dropped", under_way=len(self._background))
            return
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _refusal(self, answer: AdmitAnswer, hold: Hold, rate: Rate | None) -> ProblemError:
        headers = rate.headers() if rate else {}
        if answer.meter is None:
            seconds = rate.frees_seconds if rate else 1
            detail = f"At most {self._accepted_per_minute} upgrades are accepted in any 60 s for one user."
            return ProblemError(RATE_LIMITED, detail, headers={**headers, "Retry-After": str(max(1, seconds))})
        need: int = getattr(hold.size, answer.meter.meter.value)
        return _quota_exceeded(answer.meter, need, hold.period, self._clock(), headers)


def _only_holds_are_in_the_way(answer: AdmitAnswer, hold: Hold) -> bool:
    """Whether the hold does not fit now, and may fit when open holds become what was used.

    An upgrade that ends becomes one used upgrade: on that meter nothing is won by waiting.
    """
    if answer.verdict != "quota_exceeded" or answer.meter is None or answer.meter.meter is Meter.UPGRADES:
        return False
    return _fits_without_holds(answer.meter, getattr(hold.size, answer.meter.meter.value))


def _fits_without_holds(meter: MeterState, need: int) -> bool:
    return meter.limit is not None and meter.held > 0 and meter.used + need <= meter.limit


def _quota_exceeded(meter: MeterState, need: int, period: str, now: datetime, headers: dict[str, str]) -> ProblemError:
    """The refusal for a meter without room for `need`."""
    resets_at = QuotaPeriod.of(period).end
    # Held quota may be released at any moment; used quota returns at the end of the period.
    fits_later = _fits_without_holds(meter, need)
    wait = _RETRY_WHEN_HELD_SECONDS if fits_later else max(1, round((resets_at - now).total_seconds()))
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
async def _outages_as_unavailable() -> AsyncIterator[None]:
    try:
        yield
    except (AdmissionUnavailable, UsageUnavailable, StorageUnavailable, RebuildFailed, TimeoutError) as error:
        log.warning("admission_unavailable", error=type(error).__name__)
        raise _unavailable() from None


def _unavailable() -> ProblemError:
    return ProblemError(UNAVAILABLE, "Nothing was accepted. Try again.", headers={"Retry-After": "2"})
