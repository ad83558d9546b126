"""`Idempotency-Key` for the small things that are created: asked for twice, they are made once and answered alike."""

from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from starlette.requests import Request

from services.gateway.api.idempotent_creations import CreationUnderWay, IdempotentCreations
from services.gateway.api.preferences import idempotency_key_of
from services.gateway.identity.caller import Caller
from services.gateway.problems import ProblemError
from services.gateway.upgrades.accept import IdempotencyKeyReused
from shared.contracts.contract import Contract
from shared.contracts.ids import new_id
from shared.contracts.problems import CONFLICT, IDEMPOTENCY_KEY_REUSED
from shared.contracts.upgrade_tasks import SealedText
from shared.privacy.sealing import Vault

_PURPOSE = "creation"


def scope_of(caller: Caller) -> str:
    """Whose idempotency keys these are: nobody else gets the answer again, which may be a secret of whoever asked."""
    return f"{caller.tenant_id}:{caller.credential_id}"


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
