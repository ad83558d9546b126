"""`Idempotency-Key` for routes other than upgrades: requests with the same key and body create one thing and get
one answer.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
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

_TAKEN_OVER_AFTER = timedelta(seconds=45)
_GIVEN_BACK = ""  # earlier than any time: the next one takes over at once
_WAIT_SECONDS = 40.0
_LOOK_EVERY_SECONDS = 0.1

Create = Callable[[str], Awaitable[dict[str, Any]]]


class CreationUnderWay(Exception):
    """The first request with this key has not finished in time; the client may ask again."""


class IdempotentCreations:
    """Claims of idempotency keys, one document per tenant, route and key."""

    def __init__(self, claims: Collection, clock: Callable[[], datetime] = now_utc) -> None:
        self._claims = claims
        self._clock = clock

    async def once(
        self, tenant_id: str, route: str, key: str, body_hash: str, create: Create
    ) -> tuple[dict[str, Any], bool]:
        """What `create(id)` gave for the first request with this key, and whether this one is a repeat.

        `create` gets the id that the new thing is to have. When it refuses, the key is free again; when it fails in
        any other way the thing may exist, and who asks again with the same body gets it by the same id. So it is with
        MadeBefore. Raises IdempotencyKeyReused for another body, and CreationUnderWay.
        """
        claim_id = derived_id("creation", tenant_id, route, key)
        until = time.monotonic() + _WAIT_SECONDS
        while True:
            claim, ours = await self._claim(claim_id, tenant_id, body_hash)
            if ours:
                return await self._create(claim, create), False
            if claim["bodyHash"] != body_hash:
                raise IdempotencyKeyReused
            if "answer" in claim:
                return dict(claim["answer"]), True
            if time.monotonic() > until:
                raise CreationUnderWay
            await asyncio.sleep(_LOOK_EVERY_SECONDS)

    async def forget_old(self) -> int:
        """Deletes claims whose window is over; gives how many."""
        return await self._claims.delete_many({"createdAt": {"$lt": format_utc(self._clock() - IDEMPOTENCY_WINDOW)}})

    async def forget_all(self, tenant_id: str) -> int:
        """Deletes the claims of a tenant, and of every credential in it; gives how many. Raises StorageUnavailable."""
        # A claim is of the tenant's id alone, or of `<tenant>:<credential>`; the semicolon comes after the colon.
        return await self._claims.delete_many({"tenantId": {"$gte": tenant_id, "$lt": f"{tenant_id};"}})

    async def _claim(self, claim_id: str, tenant_id: str, body_hash: str) -> tuple[dict[str, Any], bool]:
        now = self._clock()
        fresh = {
            "_id": claim_id,
            "tenantId": tenant_id,
            "bodyHash": body_hash,
            "thingId": new_id(),
            "createdAt": format_utc(now),
            "claimedAt": format_utc(now),
        }
        claim, ours = await self._claims.insert_if_absent(fresh)
        if ours:
            return claim, True
        if claim["createdAt"] < format_utc(now - IDEMPOTENCY_WINDOW):
            await self._claims.delete_many({"_id": claim_id, "createdAt": claim["createdAt"]})
            return await self._claims.insert_if_absent(fresh)
        abandoned = "answer" not in claim and claim["claimedAt"] < format_utc(now - _TAKEN_OVER_AFTER)
        if abandoned and claim["bodyHash"] == body_hash:
            # The process that claimed it is gone; the same id makes sure that there is still only one thing.
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
            mine = {"_id": claim["_id"], "claimedAt": claim["claimedAt"]}
            # Were the key free, the next repeat would bring back what has been deleted.
            if changed_nothing(error) and not isinstance(error, MadeBefore):
                await self._claims.delete_many(mine)
            else:
                await self._claims.update_one(mine, {"$set": {"claimedAt": _GIVEN_BACK}})
            raise
        await self._claims.update_one({"_id": claim["_id"]}, {"$set": {"answer": answer}})
        return answer


_PURPOSE = "creation"


class OnceOnly:
    """Keeps the answers of creations sealed: they hold what was created, titles and names, or a new API key."""

    def __init__(self, creations: IdempotentCreations, vault: Vault) -> None:
        self._creations = creations
        self._vault = vault

    async def create(
        self, request: Request, scope: str, route: str, body: Contract, create: Callable[[str], Awaitable[Contract]]
    ) -> tuple[bytes, dict[str, str]]:
        """The JSON that `create(id)` gave for the first request with its key, and the headers that say so.

        `scope` is whose idempotency keys these are. Raises ProblemError, StorageUnavailable and what `create`
        raises.
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
        """As `create`, for the idempotency key and the keyed hash of a request; tells whether it is a repeat."""

        async def sealed(thing_id: str) -> dict[str, Any]:
            answer = (await create(thing_id)).to_json().decode()
            return self._vault.seal(answer, tenant_id=scope, subject_id=route, purpose=_PURPOSE).to_document()

        try:
            answer, replayed = await self._creations.once(scope, route, key, body_hash, sealed)
        except IdempotencyKeyReused:
            raise ProblemError(IDEMPOTENCY_KEY_REUSED, "This Idempotency-Key came with another body before.") from None
        except CreationUnderWay:
            raise ProblemError(CONFLICT, "The first request with this Idempotency-Key is still running.") from None
        opened = self._vault.open(
            SealedText.model_validate(answer), tenant_id=scope, subject_id=route, purpose=_PURPOSE
        )
        return opened.encode(), replayed
