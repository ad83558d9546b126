"""Finds the upgrade that an idempotency key belongs to, and the port to the accepted records.

Two places know the owner of a key. The claim in Redis is taken with the hold and may be lost with Redis, or belong to a
request that was never recorded. The unique index of the store decides: the record that has the key owns it.
"""

import asyncio
import time
from collections.abc import Callable
from datetime import datetime
from typing import Protocol

from services.gateway.http.problems import IDEMPOTENCY_WINDOW
from services.gateway.quota.admission import Claim
from services.gateway.quota.recording import RECORD_WITHIN_SECONDS, Existing, Written
from services.gateway.upgrades.accepted_record import AcceptedRecord

_CLAIMANT_RECORDS_WITHIN_SECONDS = RECORD_WITHIN_SECONDS + 0.5
_FIRST_PAUSE_SECONDS = 0.005
_LONGEST_PAUSE_SECONDS = 0.1
_INSERT_ATTEMPTS = 3


class KeyTaken(Exception):
    """Another record of the tenant has the idempotency key."""


class AcceptedRecords(Protocol):
    """The stored records of accepted upgrades. Every method may raise StorageUnavailable."""

    async def insert(self, record: AcceptedRecord) -> None:
        """Stores the record durably. Raises KeyTaken when another record of its tenant has the key."""

    async def find_by_key(self, tenant_id: str, key_hash: str) -> AcceptedRecord | None: ...

    async def find(self, tenant_id: str, upgrade_id: str) -> AcceptedRecord | None: ...

    async def release_key(self, record: AcceptedRecord) -> None:
        """Removes the idempotency key from a record, so that a new one can have it."""

    async def keep(self, upgrade_id: str) -> bool:
        """Protects the record from `withdraw`, since a request is answered with it; False when it is gone already."""

    async def withdraw(self, upgrade_id: str) -> bool:
        """Deletes the record of a request that failed; False when it is kept, and stays."""


class IdempotencyKeys:
    """Looks up owners of keys. An owner that it returns is kept: nothing withdraws it any more."""

    def __init__(self, records: AcceptedRecords, clock: Callable[[], datetime]) -> None:
        self._records = records
        self._clock = clock

    async def owner(self, record: AcceptedRecord) -> AcceptedRecord | None:
        """The earlier record that owns the key of the new `record`; None when there is none."""
        earlier = await self._find_by_key(record)
        return earlier if earlier is not None and await self._keep(earlier) else None

    async def wait_for_claimant(self, record: AcceptedRecord, claim: Claim) -> AcceptedRecord | None:
        """The record of the request that claimed the key, which may be about to write it.

        None when that request recorded nothing in time, or no longer owns the key.
        """
        until = time.monotonic() + _CLAIMANT_RECORDS_WITHIN_SECONDS
        pause = _FIRST_PAUSE_SECONDS
        while True:
            earlier = await self._records.find(record.tenant_id, claim.upgrade_id)
            if earlier is not None and self._has_expired(earlier):
                return None
            # After a loss of Redis the claimant may be a repeated request itself, which records nothing.
            earlier = earlier or await self._find_by_key(record)
            if earlier is not None:
                return earlier if await self._keep(earlier) else None
            if time.monotonic() > until:
                return None
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def insert(self, record: AcceptedRecord) -> Written | Existing[AcceptedRecord]:
        """Inserts the record, or finds the one that owns its key.

        Tries again when the owner was withdrawn meanwhile, or its key has expired and was released. Raises KeyTaken
        when that happens too often.
        """
        for _ in range(_INSERT_ATTEMPTS):
            try:
                await self._records.insert(record)
                return Written()
            except KeyTaken:
                assert record.key_hash is not None  # noqa: S101 -- only a key can be taken
                earlier = await self._records.find_by_key(record.tenant_id, record.key_hash)
            if earlier is None:
                continue
            if self._has_expired(earlier):
                await self._records.release_key(earlier)
            elif await self._keep(earlier):
                return Existing(earlier)
        raise KeyTaken

    async def _find_by_key(self, record: AcceptedRecord) -> AcceptedRecord | None:
        if record.key_hash is None:
            return None
        earlier = await self._records.find_by_key(record.tenant_id, record.key_hash)
        return None if earlier is None or self._has_expired(earlier) else earlier

    async def _keep(self, earlier: AcceptedRecord) -> bool:
        """Whether the record stays. One that was written too late may be withdrawn, until it is kept."""
        if earlier.kept or earlier.published_on is not None or earlier.has_ended():
            return True
        return await self._records.keep(earlier.upgrade_id)

    def _has_expired(self, earlier: AcceptedRecord) -> bool:
        """Whether the earlier request no longer owns its key."""
        return earlier.key_hash is None or earlier.older_than(self._clock() - IDEMPOTENCY_WINDOW)
