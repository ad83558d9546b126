"""Identifies the caller of a request from its API key or token. Results are cached for 3 s."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from cachetools import TLRUCache
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
from shared.service.single_flight import SingleFlight
from shared.storage.documents import StorageUnavailable

_CACHED_SECONDS = 3.0  # how long another replica still accepts a revoked key, a removed member or a former role
_CACHE_SIZE = 10_000

OnFailedAuth = Callable[[HTTPConnection], Awaitable[None]]


async def ignore_failed_auth(_: HTTPConnection) -> None:
    """For a gateway that does not limit failed authentications."""


def no_such_workspace() -> ProblemError:
    """The same problem for a workspace of others and for one that does not exist."""
    return ProblemError(NOT_FOUND, "There is no such workspace.")


@dataclass(frozen=True)
class _Identified:
    caller: Caller
    cached_until: float  # by the monotonic clock
    expires_at: float  # by the wall clock, seconds since 1970


# Digest of the credential, whether it came as Bearer, and the workspace that the request names.
_CacheKey = tuple[bytes, bool, str | None]


class Authenticator:
    """Implements Identify. Each failed authentication is passed to `on_failed_auth`, which may raise ProblemError."""

    def __init__(
        self,
        *,
        demo: DemoKey,
        keys: ApiKeys,
        tokens: TokenVerifier | None,
        workspaces: Workspaces,
        audit: Audit,
        on_failed_auth: OnFailedAuth = ignore_failed_auth,
    ) -> None:
        self._demo = demo
        self._keys = keys
        self._tokens = tokens
        self._workspaces = workspaces
        self._audit = audit
        self._on_failed_auth = on_failed_auth
        self._cache: TLRUCache[_CacheKey, _Identified] = TLRUCache(
            _CACHE_SIZE, ttu=lambda _key, identified, _now: identified.cached_until, timer=time.monotonic
        )
        self._lookups = SingleFlight[_CacheKey, _Identified](on_result=self._cache.__setitem__)

    async def __call__(
        self, request: HTTPConnection, workspace_id: str | None = None, *, fresh: bool = False
    ) -> Caller:
        try:
            presented = presented_credential(request)
            chosen = workspace_id if workspace_id is not None else _chosen_workspace(request)
            identified = await (self._identify(presented, chosen) if fresh else self._cached(presented, chosen))
            if identified.expires_at <= time.time():
                raise unknown_credential()
        except ProblemError as error:
            if error.problem is UNAUTHENTICATED:
                await self._on_failed_auth(request)
            raise
        if identified.caller.is_key and identified.caller is not self._demo.caller:
            self._keys.note_use(identified.caller.credential_id)
        return identified.caller

    def forget(self) -> None:
        """Empties the cache after a change of keys, members or workspaces."""
        self._cache.clear()
        # A running look-up may have read the store before the change: it is neither joined nor cached.
        self._lookups.forget_all()

    async def _cached(self, presented: Presented, chosen: str | None) -> _Identified:
        key = (presented.digest(), presented.as_bearer, chosen)
        identified = self._cache.get(key)
        if identified is not None:
            return identified
        return await self._lookups.run(key, lambda: self._identify(presented, chosen))

    async def _identify(self, presented: Presented, chosen: str | None) -> _Identified:
        # Counted from before the first read, so that a later change is noticed in time.
        cached_until = time.monotonic() + _CACHED_SECONDS
        if chosen is not None:
            chosen = chosen.lower() if is_uuid(chosen) else ""
        try:
            if self._demo.matches(presented.digest()):
                caller, expires_at = self._demo.caller, float("inf")
            elif presented.value.startswith(KEY_START):
                caller, expires_at = await self._by_key(presented.value)
            else:
                caller, expires_at = await self._by_token(presented, chosen)
        except (StorageUnavailable, KeysUnavailable):
            detail = "The caller cannot be identified right now."
            raise ProblemError(UNAVAILABLE, detail, headers={"Retry-After": "2"}) from None
        if chosen is not None and chosen != caller.tenant_id:
            raise no_such_workspace()
        return _Identified(caller, cached_until, expires_at)

    async def _by_key(self, plain: str) -> tuple[Caller, float]:
        """The caller with this API key, and when the key expires."""
        key = await self._keys.find(plain)
        workspace = await self._workspaces.find(key.tenant_id) if key else None
        if key is None or workspace is None:
            raise unknown_credential()
        role: Role | None = key.role
        if key.person_id is not None:
            # A key never exceeds the present role of the person that answers for it.
            bound = workspace.role_of(key.person_id)
            role = key.role.at_most(bound) if bound else None
        if role is None:
            raise unknown_credential()
        caller = Caller(key.tenant_id, f"key:{key.id}", role, key.id, is_key=True, person_id=key.person_id)
        return caller, key.expires_at.timestamp() if key.expires_at else float("inf")

    async def _by_token(self, presented: Presented, chosen: str | None) -> tuple[Caller, float]:
        """The caller with this token in the chosen or their personal workspace, and when the token expires."""
        if self._tokens is None or not presented.as_bearer:
            raise unknown_credential()
        try:
            token = await self._tokens.verify(presented.value)
        except TokenRefused:
            raise unknown_credential() from None
        person = Person.of(token.issuer, token.subject)
        workspace = await self._personal_workspace(person)
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
        return caller, token.expires_at

    async def _personal_workspace(self, person: Person) -> Workspace:
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
