"""Stores workspaces with their members, and which workspaces each person is in. A workspace is one document that is
changed by compare-and-set, so its rules hold under concurrent changes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from services.gateway.identity.caller import Role
from services.gateway.identity.memberships import MAX_OWNED_WORKSPACES, Members, Membership, WorkspaceRefused
from shared.contracts.contract import derived_id, format_utc, new_id, now_utc
from shared.storage.documents import Collection, CollectionSpec, Index

PEOPLE = CollectionSpec(name="people")
WORKSPACES = CollectionSpec(name="workspaces", indexes=(Index(fields=("purgeSince",), only_when_present="purgeSince"),))
PERSONAL, TEAM, DEMO = "personal", "team", "demo"
MAX_WORKSPACES = 200

_ATTEMPTS = 50
_NOTE_SETTLED_AFTER = timedelta(seconds=60)
_PURGE_SETTLED_AFTER = timedelta(seconds=10)
# A document that was accepted just before the deletion reaches its store later, and much later when that is slow.
_LATEST_WORK = timedelta(minutes=5)


class NoSuchWorkspace(Exception):
    """There is no workspace with this id, or it is deleted."""


class TooBusy(Exception):
    """The workspace changed concurrently in each attempt to change it."""


@dataclass(frozen=True)
class Person:
    """The subject of an issuer's tokens. `id` is derived from both."""

    issuer: str
    subject: str
    id: str

    @staticmethod
    def of(issuer: str, subject: str) -> "Person":
        return Person(issuer, subject, derived_id("person", issuer, subject))


@dataclass(frozen=True)
class Note:
    """Says that a person may be in a workspace and may own it. The change behind a settled note has ended."""

    claim: str
    owner: bool
    settled: bool


@dataclass(frozen=True)
class Workspace:
    """One workspace. `home_of` is the id of the person whose personal workspace it is, None for other kinds."""

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
            members={person_id: Membership.from_document(person_id, member) for person_id, member in members},
            version=document["version"],
        )


class People:
    """Notes of the workspaces that each person is in, without the personal one; one document per person.

    Notes are made before the membership, so that a person's limits hold across workspaces. Every call may raise
    StorageUnavailable.
    """

    def __init__(self, people: Collection) -> None:
        self._people = people

    async def notes_of(self, person: Person) -> dict[str, Note]:
        """The person's notes by workspace id."""
        document = await self._people.get(person.id)
        settled = format_utc(now_utc() - _NOTE_SETTLED_AFTER)
        notes = document["workspaces"] if document else {}
        return {id: Note(note["claim"], note["owner"], note["at"] < settled) for id, note in notes.items()}

    async def claim(self, person: Person, workspace_id: str, *, as_owner: bool) -> bool:
        """Makes a note; False when the person has reached the limit of workspaces, or of owned ones."""
        for _ in range(_ATTEMPTS):
            document = await self._people.get(person.id)
            if document is None:
                fresh = {"_id": person.id, "workspaces": {}, "version": 1}
                document, _ = await self._people.insert_if_absent(fresh)
            notes = document["workspaces"]
            others = [note for noted, note in notes.items() if noted != workspace_id]
            owned = sum(note["owner"] for note in others) + 1  # plus the personal one
            if len(others) >= MAX_WORKSPACES or (as_owner and owned >= MAX_OWNED_WORKSPACES):
                return False
            owner = as_owner or (workspace_id in notes and notes[workspace_id]["owner"])
            note = {"claim": new_id(), "owner": owner, "at": format_utc(now_utc())}
            if await self._people.update_one(
                {"_id": person.id, "version": document["version"]},
                {"$set": {"workspaces": {**notes, workspace_id: note}}, "$inc": {"version": 1}},
            ):
                return True
        return False

    async def drop(self, person: Person, workspace_id: str, note: Note) -> None:
        """Removes a note, unless a newer one has replaced it."""
        await self._people.update_one(
            {"_id": person.id, f"workspaces.{workspace_id}.claim": note.claim},
            {"$unset": {f"workspaces.{workspace_id}": ""}, "$inc": {"version": 1}},
        )

    async def disown(self, person: Person, workspace_id: str, note: Note) -> None:
        """Removes the ownership from a note, unless a newer one has replaced it."""
        await self._people.update_one(
            {"_id": person.id, f"workspaces.{workspace_id}.claim": note.claim},
            {"$set": {f"workspaces.{workspace_id}.owner": False}, "$inc": {"version": 1}},
        )


class Workspaces:
    """Creates, finds, changes and deletes workspaces. Every call may raise StorageUnavailable."""

    def __init__(self, workspaces: Collection, people: People, clock: Callable[[], datetime] = now_utc) -> None:
        self._workspaces = workspaces
        self._people = people
        self._clock = clock

    async def find(self, workspace_id: str) -> Workspace | None:
        """The workspace, None when there is none with this id or it is deleted."""
        document = await self._workspaces.get(workspace_id)
        return None if document is None or "deletedAt" in document else Workspace.from_document(document)

    async def personal_of(self, person: Person) -> tuple[Workspace, bool]:
        """The person's personal workspace, and whether this call created it."""
        found = await self.find(personal_workspace_id(person))
        if found is not None:
            return found, False
        return await self._insert(personal_workspace_id(person), "Personal", PERSONAL, person)

    async def ensure_demo(self, workspace_id: str) -> None:
        """Creates the workspace of the demo key, without members, unless it exists."""
        await self._insert(workspace_id, "Demo", DEMO, None)

    async def create(self, workspace_id: str, name: str, owner: Person) -> Workspace:
        """A new workspace of `owner`; called again with the same id, it returns the same workspace.

        Raises WorkspaceRefused when the person owns the maximum number.
        """
        await self._claim(owner, workspace_id, as_owner=True)
        return (await self._insert(workspace_id, name, TEAM, owner))[0]

    async def of_person(self, person: Person) -> list[Workspace]:
        """The workspaces that the person is a member of, sorted by id."""
        ids = {personal_workspace_id(person), *await self._people.notes_of(person)}
        found = await self._workspaces.get_many(sorted(ids))
        workspaces = [Workspace.from_document(document) for document in found if "deletedAt" not in document]
        return [workspace for workspace in workspaces if workspace.role_of(person.id)]

    async def change_members(
        self, workspace_id: str, edit: Callable[[Workspace], Members], person: Person
    ) -> Workspace:
        """Replaces the members by the result of `edit`, which changes those of `person`; returns the new workspace.

        `edit` gets the stored workspace and may be called several times. Raises what `edit` raises, NoSuchWorkspace,
        TooBusy, and WorkspaceRefused when the person has reached their limit of workspaces.
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
                {"$set": {"members": _members_document(after.members)}, "$inc": {"version": 1}},
            ):
                return after
        raise TooBusy

    async def delete(self, workspace_id: str) -> None:
        """Marks the workspace as deleted, which ends all access to it; its content is erased in the background.

        Raises NoSuchWorkspace, and WorkspaceRefused for a personal or the demo workspace.
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
        """Ids of deleted workspaces whose content is to be erased, oldest first. No request to them runs any more."""
        found = await self._workspaces.find(
            {"purgeSince": {"$lt": format_utc(self._clock() - _PURGE_SETTLED_AFTER)}},
            sort=[("purgeSince", 1)],
            limit=limit,
        )
        return [document["_id"] for document in found]

    async def mark_purged(self, workspace_id: str) -> None:
        """Notes that the content is erased. Until late work must have ended, the workspace is purged once more."""
        document = await self._workspaces.get(workspace_id)
        if document is None:
            return
        emptied = {"name": "", "members": {}}
        last_purge = datetime.fromisoformat(document["deletedAt"]) + _LATEST_WORK
        if self._clock() < last_purge:
            change: dict[str, Any] = {"$set": {**emptied, "purgeSince": format_utc(last_purge)}}
        else:
            change = {"$set": emptied, "$unset": {"purgeSince": ""}}
        await self._workspaces.update_one({"_id": workspace_id}, change)

    async def _insert(self, workspace_id: str, name: str, kind: str, owner: Person | None) -> tuple[Workspace, bool]:
        now = self._clock()
        members = {} if owner is None else {owner.id: Membership(owner.id, owner.subject, Role.OWNER, now)}
        document, is_new = await self._workspaces.insert_if_absent(
            {
                "_id": workspace_id,
                "name": name,
                "kind": kind,
                "homeOf": owner.id if owner and kind == PERSONAL else None,
                "createdAt": format_utc(now),
                "members": _members_document(members),
                "version": 1,
            }
        )
        return Workspace.from_document(document), is_new

    async def _claim(self, person: Person, workspace_id: str, *, as_owner: bool) -> None:
        """Makes the person's note before they become a member. Raises WorkspaceRefused."""
        if workspace_id == personal_workspace_id(person):
            return
        if await self._people.claim(person, workspace_id, as_owner=as_owner):
            return
        await self._correct_notes(person)
        if not await self._people.claim(person, workspace_id, as_owner=as_owner):
            what = f"owns {MAX_OWNED_WORKSPACES}" if as_owner else f"is in {MAX_WORKSPACES}"
            raise WorkspaceRefused(f"This person {what} workspaces, the personal one included, which is the maximum.")

    async def _correct_notes(self, person: Person) -> None:
        """Removes outdated notes, except those that a running change may just have made."""
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


class DemoWorkspace:
    """Component: creates the workspace of the demo key before the first request."""

    def __init__(self, workspaces: Workspaces, workspace_id: str) -> None:
        self._workspaces = workspaces
        self._workspace_id = workspace_id

    async def start(self) -> None:
        await self._workspaces.ensure_demo(self._workspace_id)

    async def stop(self, grace_seconds: float) -> None: ...


def personal_workspace_id(person: Person) -> str:
    """Derived from the person, so that concurrent first requests of a person create one workspace."""
    return derived_id("workspace", person.issuer, person.subject)


def _members_document(members: Members) -> dict[str, Any]:
    return {person_id: member.to_document() for person_id, member in members.items()}
