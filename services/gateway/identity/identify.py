"""Identifies the caller of a request from its credential. Results are cached for 3 s."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.requests import HTTPConnection

from services.gateway.http.problems import ProblemError
from services.gateway.identity.api_keys import KEY_START, ApiKeys, DemoKey
from services.gateway.identity.audit import Action, Audit, Author
from services.gateway.identity.caller import Caller, Role
from services.gateway.identity.credentials import Presented, presented_credential, unknown_credential
from services.gateway.identity.jwt_tokens import KeysUnavailable, TokenRefused, TokenVerifier
from services.gateway.identity.workspaces import Person, Workspace, Workspaces
from shared.contracts.contract import derived_id, is_uuid
from shared.contracts.problems import INVALID_HEADER, NOT_FOUND, UNAUTHENTICATED, UNAVAILABLE
from shared.storage.documents import StorageUnavailable

REMEMBERED_SECONDS = 3.0
"""The longest that a revoked key, a removed member or a changed role still counts on another replica."""
_MOST_REMEMBERED = 10_000

Refused = Callable[[HTTPConnection], Awaitable[None]]


async def nobody_counts(_: HTTPConnection) -> None:
    """For a gateway that does not limit failed authentication."""


def no_such_workspace() -> ProblemError:
    """The same for a workspace that is somebody else's and for one that nobody has."""
    return ProblemError(NOT_FOUND, "There is no such workspace.")


@dataclass(frozen=True)
class _Known:
    caller: Caller
    until: float  # by the monotonic clock
    expires_at: float  # by the wall clock, seconds since 1970


_Asked = tuple[bytes, bool, str | None]


class Identity:
    """Identify for API keys and JWTs. `on_refused` is told of each failed authentication and may raise ProblemError."""

    def __init__(
        self,
        *,
        demo: DemoKey,
        keys: ApiKeys,
        tokens: TokenVerifier | None,
        workspaces: Workspaces,
        audit: Audit,
        on_refused: Refused = nobody_counts,
    ) -> None:
        self._demo = demo
        self._keys = keys
        self._tokens = tokens
        self._workspaces = workspaces
        self._audit = audit
        self._on_refused = on_refused
        self._known: OrderedDict[_Asked, _Known] = OrderedDict()
        self._asking: dict[_Asked, asyncio.Task[_Known]] = {}

    async def __call__(
        self, request: HTTPConnection, workspace_id: str | None = None, *, fresh: bool = False
    ) -> Caller:
        try:
            presented = presented_credential(request)
            chosen = workspace_id if workspace_id is not None else _chosen_workspace(request)
            asked = (presented.digest(), presented.as_bearer, chosen)
            known = await (self._ask(presented, chosen) if fresh else self._look_up(asked, presented))
            if known.expires_at <= time.time():
                raise unknown_credential()
        except ProblemError as error:
            if error.problem is UNAUTHENTICATED:
                await self._on_refused(request)
            raise
        if known.caller.is_key and known.caller is not self._demo.caller:
            self._keys.used(known.caller.credential_id)
        return known.caller

    def forget(self) -> None:
        """Forgets what is remembered: keys, members or workspaces have changed here."""
        self._known.clear()
        # What is being asked right now may have been read before the change; nobody joins it, nobody keeps it.
        self._asking.clear()

    async def _look_up(self, asked: _Asked, presented: Presented) -> _Known:
        known = self._known.get(asked)
        if known is not None and time.monotonic() < known.until:
            return known
        asking = self._asking.get(asked)
        if asking is None:
            asking = self._asking[asked] = asyncio.create_task(self._ask(presented, asked[2]))
            asking.add_done_callback(lambda task: self._answered(asked, task))
        return await asyncio.shield(asking)

    def _answered(self, asked: _Asked, task: asyncio.Task[_Known]) -> None:
        failed = task.cancelled() or task.exception() is not None
        if self._asking.get(asked) is not task:
            return
        del self._asking[asked]
        if failed:
            self._known.pop(asked, None)
            return
        self._known[asked] = task.result()
        self._known.move_to_end(asked)
        if len(self._known) > _MOST_REMEMBERED:
            self._known.popitem(last=False)

    async def _ask(self, presented: Presented, chosen: str | None) -> _Known:
        # Counted from before the first read: what changes after it is seen in time.
        until = time.monotonic() + REMEMBERED_SECONDS
        if chosen is not None:
            chosen = chosen.lower() if is_uuid(chosen) else ""
        try:
            if self._demo.is_it(presented.digest()):
                caller, expires_at = self._demo.caller, float("inf")
            elif presented.value.startswith(KEY_START):
                caller, expires_at = await self._by_key(presented.value)
            else:
                return await self._by_token(presented, chosen, until)
        except StorageUnavailable:
            raise _unavailable() from None
        if chosen is not None and chosen != caller.tenant_id:
            raise no_such_workspace()
        return _Known(caller, until, expires_at)

    async def _by_key(self, plain: str) -> tuple[Caller, float]:
        key = await self._keys.find(plain)
        workspace = await self._workspaces.find(key.tenant_id) if key else None
        if key is None or workspace is None:
            raise unknown_credential()
        role: Role | None = key.role
        if key.person_id is not None:
            # A key is worth no more than who answers for it is now.
            bound = workspace.role_of(key.person_id)
            role = key.role.at_most(bound) if bound else None
        if role is None:
            raise unknown_credential()
        caller = Caller(key.tenant_id, f"key:{key.id}", role, key.id, is_key=True, person_id=key.person_id)
        return caller, key.expires_at.timestamp() if key.expires_at else float("inf")

    async def _by_token(self, presented: Presented, chosen: str | None, until: float) -> _Known:
        if self._tokens is None or not presented.as_bearer:
            raise unknown_credential()
        try:
            token = await self._tokens.verify(presented.value)
        except TokenRefused:
            raise unknown_credential() from None
        except KeysUnavailable:
            raise _unavailable() from None
        person = Person.of(token.issuer, token.subject)
        workspace = await self._personal(person)
        if chosen is not None and chosen != workspace.id:
            other = await self._workspaces.find(chosen) if chosen else None
            if other is None:
                raise no_such_workspace()
            workspace = other
        role = workspace.role_of(person.id)
        if role is None:
            raise no_such_workspace()
        credential_id = derived_id("credential", token.issuer, token.subject)
        caller = Caller(workspace.id, token.subject, role, credential_id, is_key=False, person_id=person.id)
        return _Known(caller, until, token.expires_at)

    async def _personal(self, person: Person) -> Workspace:
        workspace, made = await self._workspaces.personal_of(person)
        if made:
            author = Author("person", person.subject)
            async with self._audit.change(workspace.id, author, Action.WORKSPACE_CREATED, workspace.id):
                pass
        return workspace


def _chosen_workspace(request: HTTPConnection) -> str | None:
    given = {value.strip() for value in request.headers.getlist("x-workspace-id")} - {""}
    if len(given) > 1:
        raise ProblemError(INVALID_HEADER, "X-Workspace-Id must name one workspace.")
    return given.pop() if given else None


def _unavailable() -> ProblemError:
    return ProblemError(UNAVAILABLE, "Who calls cannot be found out right now.", headers={"Retry-After": "2"})
