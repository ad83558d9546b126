"""`POST /api/upgrade`: accepts an upgrade and waits for its end. A plain Starlette endpoint, to be fast."""

import time
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response

from services.gateway.http.bodies import Preference, idempotency_key_of, parse, preference_of, read_body, require_json
from services.gateway.http.problems import IdempotencyKeyReused, ProblemError
from services.gateway.identity.caller import Caller, Role
from services.gateway.identity.roles import confirmed, requires
from services.gateway.upgrades.accept import Acceptance, AcceptUpgrade, EarlierErased
from services.gateway.upgrades.idempotency_keys import KeyTaken
from services.gateway.upgrades.publishing import TaskPublisher
from services.gateway.upgrades.stage_clients import ResultsUnavailable, UpgradeResults
from services.gateway.upgrades.views import UpgradeViews
from services.gateway.upgrades.waiting import Waiters
from shared.contracts.problems import CONFLICT, IDEMPOTENCY_KEY_REUSED, UNAVAILABLE
from shared.contracts.upgrade_http import UpgradeRequest
from shared.contracts.upgrade_results import UpgradeResult
from shared.messaging.publish.progress import ProgressLog
from shared.observability.error_reports import tag_user
from shared.observability.logs import get_logger
from shared.observability.tracing import current_traceparent
from shared.storage.documents import StorageUnavailable

MAX_UPGRADE_BYTES = 2 * 1024 * 1024
# After a slower body the caller is authenticated again, since its access may have been revoked meanwhile.
_BODY_WITHIN_SECONDS = 1.0
UPGRADE_NEEDS = requires(Role.MEMBER)

log = get_logger(__name__)


RequirePrompt = Callable[[Caller, str], Awaitable[None]]
"""Raises ProblemError unless the caller may try the version of that id."""


class UpgradeRoute:
    """Accepts an upgrade, publishes it, and waits for its end for as long as the client asks for."""

    def __init__(
        self,
        *,
        accept: AcceptUpgrade,
        publisher: TaskPublisher,
        progress: ProgressLog,
        waiters: Waiters,
        results: UpgradeResults,
        views: UpgradeViews,
        require_prompt: RequirePrompt,
    ) -> None:
        self._accept_upgrade = accept
        self._publisher = publisher
        self._progress = progress
        self._waiters = waiters
        self._results = results
        self._views = views
        self._require_prompt = require_prompt

    async def post(self, request: Request) -> Response:
        """200 with the result, 202 with the upgrade so far, or a problem."""
        acceptance = await self._accept(request)
        preference = preference_of(request.headers.getlist("prefer"))
        result = await self._end_of(acceptance, preference)
        view = self._views.of(acceptance.record, result, acceptance.user_prompt)
        headers = {
            "Location": f"/api/upgrades/{acceptance.record.upgrade_id}",
            "Preference-Applied": preference.applied,
        }
        if acceptance.rate is not None:
            headers |= acceptance.rate.headers()
        if acceptance.replayed:
            headers["Idempotent-Replayed"] = "true"
        status = 200 if result is not None else 202
        return Response(view.to_json(), status_code=status, headers=headers, media_type="application/json")

    async def _accept(self, request: Request) -> Acceptance:
        caller = await UPGRADE_NEEDS(request)
        key = idempotency_key_of(request.headers.getlist("idempotency-key"))
        require_json(request)
        started = time.monotonic()
        body = parse(UpgradeRequest, await read_body(request, MAX_UPGRADE_BYTES))
        if time.monotonic() - started > _BODY_WITHIN_SECONDS:
            caller = await confirmed(request)
        if body.options.prompt_id is not None:
            await self._require_prompt(caller, body.options.prompt_id)
        try:
            acceptance = await self._accept_upgrade(
                caller, body, idempotency_key=key, traceparent=current_traceparent()
            )
        except IdempotencyKeyReused:
            raise ProblemError(IDEMPOTENCY_KEY_REUSED, "This Idempotency-Key came with another body before.") from None
        except EarlierErased:
            raise ProblemError(CONFLICT, "The upgrade of this Idempotency-Key was erased.") from None
        except (StorageUnavailable, KeyTaken) as error:
            log.warning("upgrade_not_recorded", error=type(error).__name__)
            raise ProblemError(UNAVAILABLE, "Nothing was accepted. Try again.", headers={"Retry-After": "2"}) from None
        tag_user(acceptance.record.user_ref)
        return acceptance

    async def _end_of(self, acceptance: Acceptance, preference: Preference) -> UpgradeResult | None:
        """The result within the time that the client asks for, or None."""
        upgrade_id = acceptance.record.upgrade_id
        waiter = self._waiters.join(upgrade_id)
        if not acceptance.replayed:
            await self._progress.accepted(acceptance.task)
            self._publisher.publish_soon(acceptance.record, acceptance.task.itinerary[0])
        elif preference.wait_seconds > 0:
            # A replay that does not wait repeats the first answer, 202, even if the upgrade has ended meanwhile.
            waiter.wake_if(await self._known_end(upgrade_id))
        return await self._waiters.wait(waiter, preference.wait_seconds)

    async def _known_end(self, upgrade_id: str) -> UpgradeResult | None:
        try:
            return await self._results.find(upgrade_id)
        except ResultsUnavailable:
            return None
