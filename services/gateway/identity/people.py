"""What is noted of persons: the workspaces they may be in, and how many of those they own.

Who really is in a workspace, and with which role, stands in the workspace. The notes are never too little: one is made
before what it says comes true, and is taken back only when it is in the way and not true any more.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from services.gateway.identity.memberships import MAX_OWNED_WORKSPACES
from shared.contracts.contract import format_utc, now_utc
from shared.contracts.ids import derived_id, new_id
from shared.storage.documents import Collection, CollectionSpec

PEOPLE = CollectionSpec(name="people")
MAX_WORKSPACES = 200
_SETTLED_AFTER = timedelta(seconds=60)
_ATTEMPTS = 50


@dataclass(frozen=True)
class Person:
    """Somebody with tokens of an issuer. `id` is derived from both."""

    issuer: str
    subject: str
    id: str

    @staticmethod
    def of(issuer: str, subject: str) -> "Person":
        return Person(issuer, subject, derived_id("person", issuer, subject))


@dataclass(frozen=True)
class Note:
    """The person may be in a workspace, and own it. A settled one is too old for its change to be still under way."""

    claim: str
    owner: bool
    settled: bool


class People:
    """One document per person who is in a workspace beside their personal one. May raise StorageUnavailable."""

    def __init__(self, people: Collection, clock: Callable[[], datetime] = now_utc) -> None:
        self._people = people
        self._clock = clock

    async def notes_of(self, person: Person) -> dict[str, Note]:
        """By workspace id, without the personal one."""
        document = await self._people.get(person.id)
        settled = format_utc(self._clock() - _SETTLED_AFTER)
        notes = document["workspaces"] if document else {}
        return {id: Note(note["claim"], note["owner"], note["at"] < settled) for id, note in notes.items()}

    async def claim(self, person: Person, workspace_id: str, *, as_owner: bool) -> bool:
        """Makes a note; False when the person may be in no more workspaces, or own no more."""
        for _ in range(_ATTEMPTS):
            document = await self._people.get(person.id)
            if document is None:
                fresh = {"_id": person.id, "workspaces": {}, "version": 1}
                document, _ours = await self._people.insert_if_absent(fresh)
            notes = document["workspaces"]
            others = [note for noted, note in notes.items() if noted != workspace_id]
            owned = sum(note["owner"] for note in others) + 1  # the personal one
            if len(others) >= MAX_WORKSPACES or (as_owner and owned >= MAX_OWNED_WORKSPACES):
                return False
            owner = as_owner or (workspace_id in notes and notes[workspace_id]["owner"])
            note = {"claim": new_id(), "owner": owner, "at": format_utc(self._clock())}
            if await self._people.update_one(
                {"_id": person.id, "version": document["version"]},
                {"$set": {"workspaces": {**notes, workspace_id: note}}, "$inc": {"version": 1}},
            ):
                return True
        return False

    async def drop(self, person: Person, workspace_id: str, note: Note) -> None:
        """Takes a note back, unless a newer one has replaced it."""
        await self._people.update_one(
            {"_id": person.id, f"workspaces.{workspace_id}.claim": note.claim},
            {"$unset": {f"workspaces.{workspace_id}": ""}, "$inc": {"version": 1}},
        )

    async def disown(self, person: Person, workspace_id: str, note: Note) -> None:
        """Takes back that the person owns that workspace, unless a newer note has replaced this one."""
        await self._people.update_one(
            {"_id": person.id, f"workspaces.{workspace_id}.claim": note.claim},
            {"$set": {f"workspaces.{workspace_id}.owner": False}, "$inc": {"version": 1}},
        )
