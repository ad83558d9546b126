"""`Idempotency-Key` for routes other than upgrades: requests with the same key and body create one resource and get one
answer. Answers are stored sealed, since they hold titles, names and new API keys.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import orjson
from starlette.requests import Request

from services.gateway.http.bodies import idempotency_key_of
from services.gateway.http.problems import (
    IDEMPOTENCY_WINDOW,
    IdempotencyKeyReused,
    MadeBefore,
    ProblemError,
    changed_nothing,
)
from shared.contracts.contract import Contract, derived_id, format_utc, new_id, now_utc
from shared.contracts.problems import CONFLICT, IDEMPOTENCY_KEY_REUSED
from shared.contracts.upgrade_tasks import SealedText
from shared.privacy.sealing import Vault
from shared.storage.documents import Collection, CollectionSpec, Index

CREATIONS = CollectionSpec(
    name="idempotent_creations", indexes=(Index(fields=("createdAt",)), Index(fields=("tenantId",)))
)

_TAKEOVER_AFTER = timedelta(seconds=45)
_RELEASED = ""  # sorts before every time, so the next request takes the claim over at once
_WAIT_SECONDS = 40.0
_POLL_SECONDS = 0.1
_SEAL_PURPOSE = "creation"

Create = Callable[[str], Awaitable[dict[str, Any]]]


class CreationUnderWay(Exception):
    """The first request with this key has not finished within 40 s; the client may retry."""


class CreationClaims:
    """Claims of idempotency keys in the store, one document per scope, route and key."""

    def __init__(self, claims: Collection) -> None:
        self._claims = claims

    async def once(
        self, scope: str, route: str, key: str, body_hash: str, create: Create
    ) -> tuple[dict[str, Any], bool]:
        """The result of `create(id)` for the first request with this key, and whether this request is a repeat.

        `create` gets the id of the new resource. When it refuses, the key is released. When it fails otherwise or
        raises MadeBefore, the resource may exist: a repeat with the same body calls `create` with the same id. Raises
        IdempotencyKeyReused for another body, CreationUnderWay, StorageUnavailable and what `create` raises.
        """
        claim_id = derived_id("creation", scope, route, key)
        until = time.monotonic() + _WAIT_SECONDS
        while True:
            claim, is_ours = await self._claim(claim_id, scope, body_hash)
            if is_ours:
                return await self._create(claim, create), False
            if claim["bodyHash"] != body_hash:
                raise IdempotencyKeyReused
            if "answer" in claim:
                return dict(claim["answer"]), True
            if time.monotonic() > until:
                raise CreationUnderWay
            await asyncio.sleep(_POLL_SECONDS)

    async def forget_old(self) -> int:
        """Deletes claims whose 24 h are over; returns their number."""
        return await self._claims.delete_many({"createdAt": {"$lt": format_utc(now_utc() - IDEMPOTENCY_WINDOW)}})

    async def forget_all(self, tenant_id: str) -> int:
        """Deletes a tenant's claims and those of its credentials; returns their number. Raises StorageUnavailable."""
        # A claim's scope is `<tenant>` or `<tenant>:<credential>`; the semicolon is the character after the colon.
        return await self._claims.delete_many({"tenantId": {"$gte": tenant_id, "$lt": f"{tenant_id};"}})

    async def _claim(self, claim_id: str, scope: str, body_hash: str) -> tuple[dict[str, Any], bool]:
        now = now_utc()
        fresh = {
            "_id": claim_id,
            "tenantId": scope,
            "bodyHash": body_hash,
            "thingId": new_id(),
            "createdAt": format_utc(now),
            "claimedAt": format_utc(now),
        }
        claim, is_ours = await self._claims.insert_if_absent(fresh)
        if is_ours:
            return claim, True
        if claim["createdAt"] < format_utc(now - IDEMPOTENCY_WINDOW):
            await self._claims.delete_many({"_id": claim_id, "createdAt": claim["createdAt"]})
            return await self._claims.insert_if_absent(fresh)
        abandoned = "answer" not in claim and claim["claimedAt"] < format_utc(now - _TAKEOVER_AFTER)
        if abandoned and claim["bodyHash"] == body_hash:
            # The process that made the claim is gone; with the same id there is still only one resource.
            taken = await self._claims.find_one_and_update(
                {"_id": claim_id, "claimedAt": claim["claimedAt"]}, {"$set": {"claimedAt": format_utc(now)}}
            )
            if taken is not None:
                return taken, True
        return claim, False

    async def _create(self, claim: dict[str, Any], create: Create) -> dict[str, Any]:
        try:
            answer = await create(claim["thingId"])
        except BaseException as error:
            our_claim = {"_id": claim["_id"], "claimedAt": claim["claimedAt"]}
            # After MadeBefore the claim stays: a released key would let the next repeat recreate what was deleted.
            if changed_nothing(error) and not isinstance(error, MadeBefore):
                await self._claims.delete_many(our_claim)
            else:
                await self._claims.update_one(our_claim, {"$set": {"claimedAt": _RELEASED}})
            raise
        await self._claims.update_one({"_id": claim["_id"]}, {"$set": {"answer": answer}})
        return answer


class IdempotentCreations:
    """Runs creations at most once per idempotency key and repeats the stored answer."""

    def __init__(self, claims: CreationClaims, vault: Vault) -> None:
        self._claims = claims
        self._vault = vault

    async def create(
        self, request: Request, scope: str, route: str, body: Contract, create: Callable[[str], Awaitable[Contract]]
    ) -> tuple[bytes, dict[str, str]]:
        """The JSON of what `create(id)` returned for the first request with the key, and headers for the answer.

        `scope` is the owner of the idempotency keys: a tenant, a credential or a person. Raises ProblemError,
        StorageUnavailable and what `create` raises.
        """
        key = idempotency_key_of(request.headers.getlist("idempotency-key"))
        if key is None:
            return (await create(new_id())).to_json(), {}
        body_hash = self._vault.keyed_hash("creation-body", scope, orjson.dumps(body.to_document()).decode())
        answer, replayed = await self.with_key(key, scope, route, body_hash, create)
        return answer, {"Idempotent-Replayed": "true"} if replayed else {}

    async def with_key(
        self, key: str, scope: str, route: str, body_hash: str, create: Callable[[str], Awaitable[Contract]]
    ) -> tuple[bytes, bool]:
        """As `create`, for a request's key and the keyed hash of its body; the flag is True for a repeat."""

        async def sealed(resource_id: str) -> dict[str, Any]:
            answer = (await create(resource_id)).to_json().decode()
            return self._vault.seal(answer, tenant_id=scope, subject_id=route, purpose=_SEAL_PURPOSE).to_document()

        try:
            answer, replayed = await self._claims.once(scope, route, key, body_hash, sealed)
        except IdempotencyKeyReused:
            raise ProblemError(IDEMPOTENCY_KEY_REUSED, "This Idempotency-Key came with another body before.") from None
        except CreationUnderWay:
            raise ProblemError(CONFLICT, "The first request with this Idempotency-Key is still running.") from None
        opened = self._vault.open(
            SealedText.model_validate(answer), tenant_id=scope, subject_id=route, purpose=_SEAL_PURPOSE
        )
        return opened.encode(), replayed
