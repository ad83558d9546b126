"""Workspaces, their members, and how many workspaces each person owns. A workspace is one document, so every rule
about its members holds under races.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from services.gateway.identity.caller import Role
from services.gateway.identity.memberships import MAX_OWNED_WORKSPACES, MemberOf, Members
from shared.contracts.contract import derived_id, format_utc, new_id, now_utc
from shared.storage.documents import Collection, CollectionSpec, Index

PEOPLE = CollectionSpec(name="people")
MAX_WORKSPACES = 200
_NOTE_SETTLED_AFTER = timedelta(seconds=60)
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
        settled = format_utc(self._clock() - _NOTE_SETTLED_AFTER)
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


WORKSPACES = CollectionSpec(name="workspaces", indexes=(Index(fields=("purgeSince",), only_when_present="purgeSince"),))
PERSONAL, TEAM, DEMO = "personal", "team", "demo"

_PURGE_SETTLED_AFTER = timedelta(seconds=10)
# A document that was let in just before takes its time to reach its store, and more when that is slow.
_LATEST_WORK = timedelta(minutes=5)


class NoSuchWorkspace(Exception):
    """There is none of that id, or it is deleted."""


class WorkspaceRefused(Exception):
    """The change would break a rule; the message says which, for who asked."""


class TooBusy(Exception):
    """Too many changes of one workspace at once."""


@dataclass(frozen=True)
class Workspace:
    """One workspace. `home_of` is the person whose personal workspace it is, None for every other kind."""

    id: str
    name: str
    kind: str
    home_of: str | None
    created_at: datetime
    members: Members
    version: int

    def role_of(self, person_id: str) -> Role | None:
        member = self.members.get(person_id)
        return member.role if member else None

    @staticmethod
    def from_document(document: Mapping[str, Any]) -> "Workspace":
        members = document["members"].items()
        return Workspace(
            id=document["_id"],
            name=document["name"],
            kind=document["kind"],
            home_of=document["homeOf"],
            created_at=datetime.fromisoformat(document["createdAt"]),
            members={person_id: MemberOf.from_document(person_id, member) for person_id, member in members},
            version=document["version"],
        )


def personal_workspace_id(person: Person) -> str:
    """The same for the same person, in any process: ten first requests make one workspace."""
    return derived_id("workspace", person.issuer, person.subject)


def members_document(members: Members) -> dict[str, Any]:
    return {person_id: member.to_document() for person_id, member in members.items()}


class Workspaces:
    """Every call may raise StorageUnavailable."""

    def __init__(self, workspaces: Collection, people: People, clock: Callable[[], datetime] = now_utc) -> None:
        self._workspaces = workspaces
        self._people = people
        self._clock = clock

    async def find(self, workspace_id: str) -> Workspace | None:
        document = await self._workspaces.get(workspace_id)
        return None if document is None or "deletedAt" in document else Workspace.from_document(document)

    async def personal_of(self, person: Person) -> tuple[Workspace, bool]:
        """The person's own workspace, and whether it was made just now: once, however many ask at the same time."""
        found = await self.find(personal_workspace_id(person))
        if found is not None:
            return found, False
        return await self._make(personal_workspace_id(person), "Personal", PERSONAL, person)

    async def ensure_demo(self, workspace_id: str) -> None:
        """Makes the workspace of the demo key, which nobody is a member of yet."""
        await self._make(workspace_id, "Demo", DEMO, None)

    async def create(self, workspace_id: str, name: str, owner: Person) -> Workspace:
        """A workspace that `owner` made; the same one when it is asked for again with the same id.

        Raises WorkspaceRefused when the person owns as many as a person may.
        """
        await self._claim(owner, workspace_id, as_owner=True)
        return (await self._make(workspace_id, name, TEAM, owner))[0]

    async def of_person(self, person: Person) -> list[Workspace]:
        """All that the person is in, by id."""
        ids = {personal_workspace_id(person), *await self._people.notes_of(person)}
        found = await self._workspaces.get_many(sorted(ids))
        workspaces = [Workspace.from_document(document) for document in found if "deletedAt" not in document]
        return [workspace for workspace in workspaces if workspace.role_of(person.id)]

    async def change_members(
        self, workspace_id: str, edit: Callable[[Workspace], Members], person: Person
    ) -> tuple[Workspace, Workspace]:
        """The workspace before and after `edit`, which makes the new members and concerns `person`.

        `edit` sees the members as they are at the moment of the change and may be called several times. Raises what
        `edit` raises, NoSuchWorkspace, TooBusy, and WorkspaceRefused when the person may own or join no more.
        """
        claimed = False
        for _ in range(_ATTEMPTS):
            before = await self.find(workspace_id)
            if before is None:
                raise NoSuchWorkspace
            after = replace(before, members=edit(before), version=before.version + 1)
            role = after.role_of(person.id)
            if role is not None and role is not before.role_of(person.id) and not claimed:
                await self._claim(person, workspace_id, as_owner=role is Role.OWNER)
                claimed = True
            if await self._workspaces.update_one(
                {"_id": workspace_id, "version": before.version, "deletedAt": {"$exists": False}},
                {"$set": {"members": members_document(after.members)}, "$inc": {"version": 1}},
            ):
                return before, after
        raise TooBusy

    async def delete(self, workspace_id: str) -> None:
        """From now on nobody is in it. Its content is erased in the background.

        Raises NoSuchWorkspace, and WorkspaceRefused for a workspace that somebody was given.
        """
        workspace = await self.find(workspace_id)
        if workspace is None:
            raise NoSuchWorkspace
        if workspace.kind != TEAM:
            raise WorkspaceRefused(f"A {workspace.kind} workspace cannot be deleted.")
        now = format_utc(self._clock())
        if not await self._workspaces.update_one(
            {"_id": workspace_id, "deletedAt": {"$exists": False}},
            {"$set": {"deletedAt": now, "purgeSince": now}, "$inc": {"version": 1}},
        ):
            raise NoSuchWorkspace

    async def to_purge(self, limit: int) -> list[str]:
        """Ids of deleted workspaces whose content may still be there, once no request to them can be under way."""
        found = await self._workspaces.find(
            {"purgeSince": {"$lt": format_utc(self._clock() - _PURGE_SETTLED_AFTER)}},
            sort=[("purgeSince", 1)],
            limit=limit,
        )
        return [document["_id"] for document in found]

    async def purged(self, workspace_id: str) -> None:
        """Notes that its content is gone. It is looked at once more, for what came from before the deletion since."""
        document = await self._workspaces.get(workspace_id)
        if document is None:
            return
        emptied = {"name": "", "members": {}}
        last_look = datetime.fromisoformat(document["deletedAt"]) + _LATEST_WORK
        if self._clock() < last_look:
            change: dict[str, Any] = {"$set": {**emptied, "purgeSince": format_utc(last_look)}}
        else:
            change = {"$set": emptied, "$unset": {"purgeSince": ""}}
        await self._workspaces.update_one({"_id": workspace_id}, change)

    async def _make(self, workspace_id: str, name: str, kind: str, owner: Person | None) -> tuple[Workspace, bool]:
        now = self._clock()
        members = {} if owner is None else {owner.id: MemberOf(owner.id, owner.subject, Role.OWNER, now)}
        document, ours = await self._workspaces.insert_if_absent(
            {
                "_id": workspace_id,
                "name": name,
                "kind": kind,
                "homeOf": owner.id if owner and kind == PERSONAL else None,
                "createdAt": format_utc(now),
                "members": members_document(members),
                "version": 1,
            }
        )
        return Workspace.from_document(document), ours

    async def _claim(self, person: Person, workspace_id: str, *, as_owner: bool) -> None:
        """Notes that the person is to be in a workspace, before it is so. Raises WorkspaceRefused."""
        if workspace_id == personal_workspace_id(person):
            return
        if await self._people.claim(person, workspace_id, as_owner=as_owner):
            return
        await self._correct_notes(person)
        if not await self._people.claim(person, workspace_id, as_owner=as_owner):
            what = f"owns {MAX_OWNED_WORKSPACES}" if as_owner else f"is in {MAX_WORKSPACES}"
            raise WorkspaceRefused(f"This person {what} workspaces with their personal one; a person may no more.")

    async def _correct_notes(self, person: Person) -> None:
        """Takes back what is not so any more, but nothing that a change under way may just have noted."""
        notes = await self._people.notes_of(person)
        found: Sequence[dict[str, Any]] = await self._workspaces.get_many(list(notes))
        documents = {document["_id"]: document for document in found}
        for workspace_id, note in notes.items():
            document = documents.get(workspace_id)
            if document is not None and "deletedAt" in document:
                await self._people.drop(person, workspace_id, note)
            elif note.settled:
                role = Workspace.from_document(document).role_of(person.id) if document else None
                if role is None:
                    await self._people.drop(person, workspace_id, note)
                elif role is not Role.OWNER and note.owner:
                    await self._people.disown(person, workspace_id, note)
