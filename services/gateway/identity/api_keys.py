"""API keys. The store holds a prefix to find a key by and its hash; the key itself is shown once, when it is
created.
"""

import contextlib
import hmac
import secrets
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from services.gateway.identity.caller import Caller, Role
from services.gateway.identity.credentials import credential_digest
from shared.contracts.contract import derived_id, format_utc, now_utc
from shared.contracts.workspaces_http import KeyView
from shared.storage.documents import Collection, CollectionSpec, Document, DuplicateKey, Index

MAX_KEYS = 100
PLACES = tuple(f"{number:02}" for number in range(MAX_KEYS))
PLACE_INDEX = Index(fields=("tenantId", "place"), unique=True, only_when_present="place")


def free_places(keys: Sequence[Mapping[str, Any]]) -> list[str]:
    """Places that none of a workspace's stored keys has. One that was stored without a place takes the last one."""
    taken = {key["place"] for key in keys if "place" in key}
    return [place for place in PLACES[: MAX_KEYS - sum("place" not in key for key in keys)] if place not in taken]


API_KEYS = CollectionSpec(
    name="api_keys",
    indexes=(Index(fields=("prefix",), unique=True), Index(fields=("tenantId", "_id")), PLACE_INDEX),
)
KEY_START = "pu_"
DEMO_TENANT_ID = derived_id("tenant", "demo")

_ALPHABET = string.ascii_letters + string.digits
_PREFIX_CHARACTERS = 12
_SECRET_CHARACTERS = 43  # 256 bits
_PREFIX_LENGTH = len(KEY_START) + _PREFIX_CHARACTERS
_KEY_LENGTH = _PREFIX_LENGTH + 1 + _SECRET_CHARACTERS
_MOST_NOTES = 10_000


class TooManyKeys(Exception):
    """The workspace has as many keys as it may."""


class KeyNeedsRole(Exception):
    """The key has a role above that of who wants it made or revoked."""

    def __init__(self, role: Role) -> None:
        super().__init__(role)
        self.role = role


class DemoKey:
    """Knows the one API key of the demo tenant, by its hash. Without a key nobody gets in."""

    def __init__(self, api_key: str | None) -> None:
        self._digest = credential_digest(api_key) if api_key else None
        self.caller = Caller(
            tenant_id=DEMO_TENANT_ID, subject="demo", role=Role.OWNER, credential_id=derived_id("credential", "demo")
        )

    def is_it(self, digest: bytes) -> bool:
        """Whether that is the digest of the demo key, in constant time."""
        return self._digest is not None and hmac.compare_digest(digest, self._digest)


@dataclass(frozen=True)
class ApiKey:
    """A key as it is stored. `person_id` is who answers for it: who made it, or made the key that made it."""

    id: str
    tenant_id: str
    name: str
    role: Role
    prefix: str
    digest: str
    person_id: str | None
    created_by: str
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None

    @staticmethod
    def from_document(document: Mapping[str, Any]) -> "ApiKey":
        return ApiKey(
            id=document["_id"],
            tenant_id=document["tenantId"],
            name=document["name"],
            role=Role(document["role"]),
            prefix=document["prefix"],
            digest=document["digest"],
            person_id=document.get("personId"),
            created_by=document["createdBy"],
            created_at=datetime.fromisoformat(document["createdAt"]),
            expires_at=_moment(document.get("expiresAt")),
            last_used_at=_moment(document.get("lastUsedAt")),
        )

    def view(self) -> KeyView:
        return KeyView(
            id=self.id,
            name=self.name,
            role=self.role.value,
            prefix=self.prefix,
            created_at=self.created_at,
            expires_at=self.expires_at,
            last_used_at=self.last_used_at,
            created_by=self.created_by,
        )


class ApiKeys:
    """Makes, finds and revokes keys. Every call may raise StorageUnavailable."""

    def __init__(self, keys: Collection, clock: Callable[[], datetime] = now_utc) -> None:
        self._keys = keys
        self._clock = clock
        self._used: set[str] = set()

    async def create(
        self, caller: Caller, *, key_id: str, name: str, role: Role, expires_at: datetime | None
    ) -> tuple[ApiKey, str]:
        """A new key of the caller's workspace, and what it is. Asked for again with its id, the first is void.

        Raises KeyNeedsRole and TooManyKeys.
        """
        if not caller.role.allows(role):
            raise KeyNeedsRole(role)
        plain = KEY_START + _random(_PREFIX_CHARACTERS) + "_" + _random(_SECRET_CHARACTERS)
        document: Document = {
            "_id": key_id,
            "tenantId": caller.tenant_id,
            "name": name,
            "role": role.value,
            "prefix": plain[:_PREFIX_LENGTH],
            "digest": credential_digest(plain).hex(),
            "createdBy": caller.subject,
            "createdAt": format_utc(self._clock()),
        }
        if caller.person_id is not None:
            document["personId"] = caller.person_id
        if expires_at is not None:
            document["expiresAt"] = format_utc(expires_at)
        if not await self._insert(document):
            # Whoever made it is gone and has told nobody what it is.
            await self._keys.update_one({"_id": key_id}, {"$set": {k: document[k] for k in ("prefix", "digest")}})
        return ApiKey.from_document(document), plain

    async def _insert(self, document: Document) -> bool:
        """Whether it is there now and was not before. Raises TooManyKeys."""
        # Whoever finds a place taken meanwhile has met another new key: after so many, there can be no place left.
        for _ in range(MAX_KEYS + 1):
            keys = await self._keys.find({"tenantId": document["tenantId"]}, limit=MAX_KEYS)
            if any(key["_id"] == document["_id"] for key in keys):
                return False
            free = free_places(keys)
            if not free:
                break
            with contextlib.suppress(DuplicateKey):
                return (await self._keys.insert_if_absent({**document, "place": secrets.choice(free)}))[1]
        raise TooManyKeys

    async def find(self, plain: str) -> ApiKey | None:
        """The key, unless it is unknown, revoked or expired."""
        if len(plain) != _KEY_LENGTH or not plain.isascii():
            return None
        document = await self._keys.find_one({"prefix": plain[:_PREFIX_LENGTH]})
        if document is None or not hmac.compare_digest(document["digest"], credential_digest(plain).hex()):
            return None
        key = ApiKey.from_document(document)
        return None if key.expires_at is not None and key.expires_at <= self._clock() else key

    async def page(self, tenant_id: str, *, limit: int, before: str | None) -> list[ApiKey]:
        """A workspace's keys, newest first, from before the id `before` on."""
        where: dict[str, Any] = {"tenantId": tenant_id} | ({"_id": {"$lt": before}} if before else {})
        return [ApiKey.from_document(found) for found in await self._keys.find(where, [("_id", -1)], limit)]

    async def get(self, tenant_id: str, key_id: str) -> ApiKey | None:
        """The workspace's key of that id; None also for what another workspace owns."""
        document = await self._keys.get(key_id)
        if document is None or document["tenantId"] != tenant_id:
            return None
        return ApiKey.from_document(document)

    async def revoke(self, caller: Caller, key: ApiKey) -> bool:
        """From the next look-up on nobody gets in with it; False when it is gone already. Raises KeyNeedsRole."""
        if not caller.role.allows(key.role):
            raise KeyNeedsRole(key.role)
        return await self._keys.delete_many({"_id": key.id, "tenantId": caller.tenant_id}) > 0

    async def revoke_of(self, tenant_id: str, person_id: str) -> int:
        """Revokes every key of a workspace that the person answers for; gives how many."""
        return await self._keys.delete_many({"tenantId": tenant_id, "personId": person_id})

    async def revoke_all(self, tenant_id: str) -> int:
        """Revokes every key of a workspace; gives how many."""
        return await self._keys.delete_many({"tenantId": tenant_id})

    def used(self, key_id: str) -> None:
        """Notes that the key was used now; the next `flush` writes it down with its own time."""
        if len(self._used) < _MOST_NOTES:
            self._used.add(key_id)

    async def flush(self) -> None:
        """Writes down when keys were last used."""
        used, self._used = self._used, set()
        now = format_utc(self._clock())
        for key_id in used:
            await self._keys.update_one({"_id": key_id}, {"$max": {"lastUsedAt": now}})


def _random(characters: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(characters))


def _moment(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
