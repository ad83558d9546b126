"""API keys of workspaces. The store has a key's prefix and hash; its plain text is shown once, when it is created."""

import contextlib
import hmac
import secrets
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from services.gateway.identity.caller import Caller, NeedsRole, Role
from services.gateway.identity.credentials import credential_digest
from shared.contracts.contract import derived_id, format_utc, now_utc
from shared.contracts.workspaces_http import KeyView
from shared.storage.documents import Collection, CollectionSpec, Document, DuplicateKey, Index

API_KEYS = CollectionSpec(
    name="api_keys",
    indexes=(
        Index(fields=("prefix",), unique=True),
        Index(fields=("tenantId", "_id")),
        Index(fields=("tenantId", "place"), unique=True, only_when_present="place"),
    ),
)
MAX_KEYS = 100
KEY_START = "pu_"
DEMO_TENANT_ID = derived_id("tenant", "demo")

# Each key occupies one of the places of its workspace, so the unique index enforces the limit when replicas race.
_PLACES = tuple(f"{number:02}" for number in range(MAX_KEYS))
_ALPHABET = string.ascii_letters + string.digits
_PREFIX_CHARACTERS = 12
_SECRET_CHARACTERS = 43  # 256 bits
_PREFIX_LENGTH = len(KEY_START) + _PREFIX_CHARACTERS
_KEY_LENGTH = _PREFIX_LENGTH + 1 + _SECRET_CHARACTERS
_MOST_NOTED_USES = 10_000


class TooManyKeys(Exception):
    """The workspace has the maximum number of keys."""


@dataclass(frozen=True)
class ApiKey:
    """A stored key. `person_id` is the person that answers for it: the creator, directly or through another key."""

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
            expires_at=_time(document.get("expiresAt")),
            last_used_at=_time(document.get("lastUsedAt")),
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
    """Creates, finds and revokes keys. Every call may raise StorageUnavailable."""

    def __init__(self, keys: Collection) -> None:
        self._keys = keys
        self._used_ids: set[str] = set()

    async def create(
        self, caller: Caller, *, key_id: str, name: str, role: Role, expires_at: datetime | None
    ) -> tuple[ApiKey, str]:
        """A new key of the caller's workspace, and its plain text. Called again with the same id, it replaces the key.

        Raises NeedsRole for a role above the caller's, and TooManyKeys.
        """
        if not caller.role.allows(role):
            raise NeedsRole(role)
        plain = KEY_START + _random(_PREFIX_CHARACTERS) + "_" + _random(_SECRET_CHARACTERS)
        document: Document = {
            "_id": key_id,
            "tenantId": caller.tenant_id,
            "name": name,
            "role": role.value,
            "prefix": plain[:_PREFIX_LENGTH],
            "digest": credential_digest(plain).hex(),
            "createdBy": caller.subject,
            "createdAt": format_utc(now_utc()),
        }
        if caller.person_id is not None:
            document["personId"] = caller.person_id
        if expires_at is not None:
            document["expiresAt"] = format_utc(expires_at)
        if not await self._insert(document):
            # An earlier attempt stored this key but its plain text reached no client, so it gets a new one.
            await self._keys.update_one({"_id": key_id}, {"$set": {k: document[k] for k in ("prefix", "digest")}})
        return ApiKey.from_document(document), plain

    async def _insert(self, document: Document) -> bool:
        """Inserts a key; False when one with its id exists. Raises TooManyKeys."""
        # Each collision means that another key was inserted meanwhile: after MAX_KEYS of them no place is left.
        for _ in range(MAX_KEYS + 1):
            keys = await self._keys.find({"tenantId": document["tenantId"]}, limit=MAX_KEYS)
            if any(key["_id"] == document["_id"] for key in keys):
                return False
            free = _free_places(keys)
            if not free:
                break
            with contextlib.suppress(DuplicateKey):
                return (await self._keys.insert_if_absent({**document, "place": secrets.choice(free)}))[1]
        raise TooManyKeys

    async def find(self, plain: str) -> ApiKey | None:
        """The key with this plain text, None when it is unknown, revoked or expired."""
        if len(plain) != _KEY_LENGTH or not plain.isascii():
            return None
        document = await self._keys.find_one({"prefix": plain[:_PREFIX_LENGTH]})
        if document is None or not hmac.compare_digest(document["digest"], credential_digest(plain).hex()):
            return None
        key = ApiKey.from_document(document)
        return None if key.expires_at is not None and key.expires_at <= now_utc() else key

    async def page(self, tenant_id: str, *, limit: int, before: str | None) -> list[ApiKey]:
        """A workspace's keys with ids below `before`, newest first."""
        where: dict[str, Any] = {"tenantId": tenant_id} | ({"_id": {"$lt": before}} if before else {})
        return [ApiKey.from_document(found) for found in await self._keys.find(where, [("_id", -1)], limit)]

    async def get(self, tenant_id: str, key_id: str) -> ApiKey | None:
        """The workspace's key with this id; None also for a key of another workspace."""
        document = await self._keys.get(key_id)
        if document is None or document["tenantId"] != tenant_id:
            return None
        return ApiKey.from_document(document)

    async def revoke(self, caller: Caller, key: ApiKey) -> bool:
        """Deletes the key; False when it is gone already. Raises NeedsRole for a key with a role above the caller's."""
        if not caller.role.allows(key.role):
            raise NeedsRole(key.role)
        return await self._keys.delete_many({"_id": key.id, "tenantId": caller.tenant_id}) > 0

    async def revoke_of(self, tenant_id: str, person_id: str) -> int:
        """Revokes the keys of a workspace that the person answers for; returns their number."""
        return await self._keys.delete_many({"tenantId": tenant_id, "personId": person_id})

    async def revoke_all(self, tenant_id: str) -> int:
        """Revokes the keys of a workspace; returns their number."""
        return await self._keys.delete_many({"tenantId": tenant_id})

    def note_use(self, key_id: str) -> None:
        """Notes that the key was used; the next `flush_uses` stores its own time as the time of use."""
        if len(self._used_ids) < _MOST_NOTED_USES:
            self._used_ids.add(key_id)

    async def flush_uses(self) -> None:
        """Stores the time of last use of the keys noted since the last flush."""
        used, self._used_ids = self._used_ids, set()
        now = format_utc(now_utc())
        for key_id in used:
            await self._keys.update_one({"_id": key_id}, {"$max": {"lastUsedAt": now}})


class DemoKey:
    """The one API key of the demo tenant, kept as its hash. With None no credential matches."""

    def __init__(self, api_key: str | None) -> None:
        self._digest = credential_digest(api_key) if api_key else None
        self.caller = Caller(
            tenant_id=DEMO_TENANT_ID, subject="demo", role=Role.OWNER, credential_id=derived_id("credential", "demo")
        )

    def matches(self, digest: bytes) -> bool:
        """Whether `digest` is the demo key's, compared in constant time."""
        return self._digest is not None and hmac.compare_digest(digest, self._digest)


def _free_places(keys: Sequence[Mapping[str, Any]]) -> list[str]:
    """The places that a workspace's stored keys leave. Keys stored without a place occupy the last ones."""
    taken = {key["place"] for key in keys if "place" in key}
    return [place for place in _PLACES[: MAX_KEYS - sum("place" not in key for key in keys)] if place not in taken]


def _random(characters: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(characters))


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
