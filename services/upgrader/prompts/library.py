"""Stores the versions of prompt templates, and one line per template name and tenant.

Versions are immutable. The line holds the state of a name's versions (in production, in a rollout, retired) and is
written by compare-and-set on its revision. A changed line is published as `prompts.changed.v1`, one event per version,
at least once: the line has `unpublishedSince` until then.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Protocol

from services.upgrader.prompts.platform_templates import first_in_production, platform_versions
from services.upgrader.prompts.rollouts import PromptLine, PromptRef, RolloutRefused
from shared.contracts.contract import Contract, Timestamp, derived_id, format_utc, now_utc
from shared.contracts.prompts import REWRITING, PromptChanged, PromptParameters, PromptType
from shared.llm.templates import check_template
from shared.messaging.errors import Transient
from shared.storage.documents import Collection, CollectionSpec, DuplicateKey, Index

VERSIONS = CollectionSpec(
    name="prompt_versions",
    indexes=(Index(fields=("line", "version"), unique=True), Index(fields=("tenantId", "_id"))),
)
LINES = CollectionSpec(
    name="prompt_lines",
    indexes=(
        Index(fields=("tenantId", "name")),
        Index(fields=("unpublishedSince",), only_when_present="unpublishedSince"),
        Index(fields=("rolloutSince",), only_when_present="rolloutSince"),
    ),
)
BUILT_IN_NAMES = {
    "summarizer": PromptType.SUMMARIZER,
    "upgrader": PromptType.UPGRADER,
    "rag_query": PromptType.RAG_QUERY,
}
PLATFORM = "platform"
MOST_VERSIONS = 500
_STEP_ATTEMPTS = 20
_BATCH = 100


class Version(Contract):
    """One version of a template."""

    prompt_id: str
    tenant_id: str | None
    name: str
    type: PromptType
    version: int
    template: str
    description: str = ""
    parameters: PromptParameters = PromptParameters()
    created_at: Timestamp
    created_by: str


class NoSuchPrompt(Exception):
    """The tenant has no such version or line."""


class PromptRefused(Exception):
    """The version cannot be created; `field` is the field at fault."""

    def __init__(self, field: str, detail: str) -> None:
        super().__init__(detail)
        self.field = field
        self.detail = detail


class Publish(Protocol):
    async def __call__(self, event_id: str, key: str, changed: PromptChanged) -> None:
        """Publishes one event. Raises Transient when it cannot."""


@dataclass(frozen=True)
class NewVersion:
    """The content of a new version. `by` is its author, as named in the audit."""

    name: str
    type: PromptType
    template: str
    description: str
    parameters: PromptParameters
    by: str


class PromptLibrary:
    """Versions and lines in the upgrader's store. Every call may raise StorageUnavailable."""

    def __init__(
        self,
        versions: Collection,
        lines: Collection,
        publish: Publish,
        clock: Callable[[], datetime] = now_utc,
    ) -> None:
        self._versions = versions
        self._lines = lines
        self._publish = publish
        self._clock = clock

    async def create(self, tenant_id: str | None, new: NewVersion, prompt_id: str) -> tuple[Version, PromptLine]:
        """Stores the next version of a name. With a known `prompt_id`, returns that version instead.

        Raises PromptRefused, or TemplateRefused for the template text.
        """
        if BUILT_IN_NAMES.get(new.name, new.type) is not new.type:
            raise PromptRefused("type", f"{new.name} is a template of type {BUILT_IN_NAMES[new.name]}")
        if new.name not in BUILT_IN_NAMES and new.type not in REWRITING:
            raise PromptRefused("type", "templates of other names rewrite prompts: their type is UPGRADER or CUSTOM")
        check_template(new.template, new.type)
        for _ in range(_STEP_ATTEMPTS):
            known = await self._versions.get(prompt_id)
            if known is not None:
                version = _version(known)
                return version, await self.line(tenant_id, version.name)
            line = await self._line_or_new(tenant_id, new)
            if line.type is not new.type:
                raise PromptRefused("type", f"the versions of this name are of type {line.type}")
            if line.versions >= MOST_VERSIONS:
                raise PromptRefused("name", f"a name has at most {MOST_VERSIONS} versions")
            version = Version(
                prompt_id=prompt_id,
                tenant_id=tenant_id,
                name=new.name,
                type=new.type,
                version=line.versions + 1,
                template=new.template,
                description=new.description,
                parameters=new.parameters,
                created_at=self._clock(),
                created_by=new.by,
            )
            document = _version_document(version)
            try:
                await self._versions.insert(document)
            except DuplicateKey:
                await self._count_versions(line)
                continue
            line = await self.step(tenant_id, new.name, partial(_counting, version=version.version))
            return _version(document), line
        raise PromptRefused("name", "many versions of this name are being made at once; try again")

    async def version(self, tenant_id: str, prompt_id: str) -> Version:
        """A version of the tenant or of the platform. Raises NoSuchPrompt."""
        document = await self._versions.get(prompt_id)
        if document is None or document["tenantId"] not in (tenant_id, PLATFORM):
            raise NoSuchPrompt(prompt_id)
        return _version(document)

    async def page(
        self, tenant_id: str, *, name: str | None, type_: PromptType | None, before: str | None, limit: int
    ) -> list[Version]:
        """Versions of the tenant and of the platform, newest first, older than the id `before` if given."""
        where: dict[str, Any] = {"tenantId": {"$in": [tenant_id, PLATFORM]}}
        if name is not None:
            where["content.name"] = name
        if type_ is not None:
            where["content.type"] = type_.value
        if before is not None:
            where["_id"] = {"$lt": before}
        return [_version(document) for document in await self._versions.find(where, sort=[("_id", -1)], limit=limit)]

    async def line(self, tenant_id: str | None, name: str) -> PromptLine:
        """The line of a name. Raises NoSuchPrompt."""
        document = await self._lines.get(line_id(tenant_id, name))
        if document is None:
            raise NoSuchPrompt(name)
        return _line(document)

    async def lines_with_rollouts(self) -> list[PromptLine]:
        """Up to 100 lines with a running rollout, oldest rollout first."""
        found = await self._lines.find({"rolloutSince": {"$exists": True}}, sort=[("rolloutSince", 1)], limit=_BATCH)
        return [_line(document) for document in found]

    async def step(self, tenant_id: str | None, name: str, change: Callable[[PromptLine], PromptLine]) -> PromptLine:
        """Changes a line by compare-and-set and publishes it. Returns the new line.

        `change` may be called several times and may raise RolloutRefused. A line that it returns unchanged is not
        written. Raises NoSuchPrompt and RolloutRefused.
        """
        for _ in range(_STEP_ATTEMPTS):
            old = await self.line(tenant_id, name)
            new = change(old)
            if new == old:
                return old
            new = new.model_copy(update={"revision": old.revision + 1})
            published = _published_part(old) != _published_part(new)
            if await self._write(old, new, unpublished=published):
                if published:
                    # What cannot be published now keeps its mark, and the sweep publishes it.
                    with contextlib.suppress(Transient):
                        await self._publish_line(new)
                return new
        raise RolloutRefused("The prompt is being changed by others; try again.")

    async def publish_unpublished(self) -> int:
        """Publishes up to 100 lines with unpublished changes. Returns how many."""
        where = {"unpublishedSince": {"$exists": True}}
        found = await self._lines.find(where, sort=[("unpublishedSince", 1)], limit=_BATCH)
        for document in found:
            await self._publish_line(_line(document))
        return len(found)

    async def publish_all(self) -> int:
        """Marks every line as unpublished, for when the topic was lost. Returns how many."""
        return await self._lines.update_many({}, {"$set": {"unpublishedSince": format_utc(self._clock())}})

    async def install_platform(self) -> None:
        """Stores missing versions of the platform's templates, and puts the listed one in production if none is."""
        for platform in platform_versions():
            new = NewVersion(
                platform.name, platform.type, platform.text, platform.description, platform.parameters, PLATFORM
            )
            await self.create(None, new, platform.prompt_id)
            if first_in_production().get(platform.name) == platform.version:
                first = PromptRef(prompt_id=platform.prompt_id, version=platform.version)
                await self.step(None, platform.name, partial(_starting_with, version=first))

    async def _publish_line(self, line: PromptLine) -> None:
        """Publishes every version of a line, and clears its mark unless the line has changed meanwhile."""
        where = {"line": line_id(line.tenant_id, line.name)}
        for document in await self._versions.find(where, sort=[("version", 1)], limit=MOST_VERSIONS):
            version = _version(document)
            stage = line.stage_of(version.prompt_id)
            changed = PromptChanged(
                tenant_id=line.tenant_id,
                name=line.name,
                type=version.type,
                version=version.version,
                prompt_id=version.prompt_id,
                stage=stage,
                share=stage.share,
                template=version.template,
                parameters=version.parameters,
                reason=line.history[-1].reason if line.history else None,
                occurred_at=self._clock(),
            )
            event_id = derived_id("prompt-changed", version.prompt_id, str(line.revision))
            await self._publish(event_id, version.prompt_id, changed)
        await self._lines.update_one(
            {"_id": line_id(line.tenant_id, line.name), "revision": line.revision},
            {"$unset": {"unpublishedSince": ""}},
        )

    async def _line_or_new(self, tenant_id: str | None, new: NewVersion) -> PromptLine:
        fresh = PromptLine(tenant_id=tenant_id, name=new.name, type=new.type)
        document, _ = await self._lines.insert_if_absent(_line_document(fresh))
        return _line(document)

    async def _count_versions(self, line: PromptLine) -> None:
        """Corrects the count of versions after a process died between storing a version and counting it."""
        where = {"line": line_id(line.tenant_id, line.name)}
        last = await self._versions.find(where, sort=[("version", -1)], limit=1)
        if last:
            await self.step(line.tenant_id, line.name, partial(_counting, version=last[0]["version"]))

    async def _write(self, old: PromptLine, new: PromptLine, *, unpublished: bool) -> bool:
        document = _line_document(new)
        changes: dict[str, Any] = {"$set": {key: value for key, value in document.items() if key != "_id"}}
        if unpublished:
            changes["$set"]["unpublishedSince"] = format_utc(self._clock())
        if new.rollout is None:
            changes["$unset"] = {"rolloutSince": ""}
        return await self._lines.update_one({"_id": document["_id"], "revision": old.revision}, changes) == 1


def line_id(tenant_id: str | None, name: str) -> str:
    """The id of a name's line, from its tenant (or the platform) and the name."""
    return f"{tenant_id or PLATFORM}:{name}"


def _counting(line: PromptLine, version: int) -> PromptLine:
    return line.model_copy(update={"versions": max(line.versions, version)})


def _starting_with(line: PromptLine, version: PromptRef) -> PromptLine:
    return line if line.production else line.model_copy(update={"production": version})


def _published_part(line: PromptLine) -> tuple[object, ...]:
    """The part of a line that is published; counters of runs are not."""
    rollout = line.rollout and (line.rollout.prompt_id, line.rollout.stage)
    return line.production, line.previous, line.rolled_back, rollout, line.versions


def _version_document(version: Version) -> dict[str, Any]:
    return {
        "_id": version.prompt_id,
        "tenantId": version.tenant_id or PLATFORM,
        "line": line_id(version.tenant_id, version.name),
        "version": version.version,
        "content": version.to_document(),
    }


def _version(document: dict[str, Any]) -> Version:
    return Version.model_validate(document["content"])


def _line_document(line: PromptLine) -> dict[str, Any]:
    document: dict[str, Any] = {
        "_id": line_id(line.tenant_id, line.name),
        "tenantId": line.tenant_id or PLATFORM,
        "name": line.name,
        "revision": line.revision,
        "content": line.to_document(),
    }
    if line.rollout is not None:
        document["rolloutSince"] = format_utc(line.rollout.started_at)
    return document


def _line(document: dict[str, Any]) -> PromptLine:
    return PromptLine.model_validate(document["content"])
