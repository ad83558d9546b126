"""Chooses the version of a template that an upgrade uses: the one it names, the tenant's own, or the platform's."""

from cachetools import TTLCache

from services.upgrader.prompts.library import NoSuchPrompt, PromptLibrary, Version
from services.upgrader.prompts.platform_templates import PromptTemplate
from services.upgrader.prompts.rollouts import PromptLine
from shared.contracts.prompts import REWRITING, rollout_point
from shared.contracts.upgrade_results import PromptVersion, Track
from shared.contracts.upgrade_tasks import UpgradeTask
from shared.messaging.errors import Transient
from shared.storage.documents import StorageUnavailable

_KNOWN_FOR_SECONDS = 2.0
_MOST_KNOWN = 10_000
_MOST_KNOWN_VERSIONS = 1_000


class PromptChooser:
    """Asks the library. A line is known for 2 s and a version longer, so that most upgrades cost no read."""

    def __init__(self, library: PromptLibrary) -> None:
        self._library = library
        self._lines: TTLCache[tuple[str | None, str], PromptLine | None] = TTLCache(_MOST_KNOWN, _KNOWN_FOR_SECONDS)
        self._versions: TTLCache[tuple[str, str], Version] = TTLCache(_MOST_KNOWN_VERSIONS, 60.0)

    async def choose(self, task: UpgradeTask) -> PromptTemplate:
        """The version for an upgrade. A version that is named and unknown gives way to the one in production.

        Raises Transient where the store is out, or has no version of the name yet.
        """
        try:
            if task.options.prompt_id is not None:
                version = await self._version(task.tenant_id, task.options.prompt_id)
                if version is not None and version.type in REWRITING:
                    return template_of(version, "pinned")
            name = task.options.template_name
            point = rollout_point(task.tenant_id, name, task.user_ref or task.upgrade_id)
            for owner in (task.tenant_id, None):
                line = await self._line(owner, name)
                chosen = _on_line(line, point) if line is not None else None
                version = await self._version(task.tenant_id, chosen[0]) if chosen is not None else None
                if chosen is not None and version is not None:
                    return template_of(version, chosen[1])
        except StorageUnavailable as error:
            raise Transient(f"storage: {error}") from error
        raise Transient(f"no version of the template {name} is in production")

    async def _line(self, owner: str | None, name: str) -> PromptLine | None:
        try:
            return self._lines[owner, name]
        except KeyError:
            pass
        try:
            line = await self._library.line(owner, name)
        except NoSuchPrompt:
            line = None
        self._lines[owner, name] = line
        return line

    async def _version(self, tenant_id: str, prompt_id: str) -> Version | None:
        known = self._versions.get((tenant_id, prompt_id))
        if known is None:
            try:
                known = await self._library.version(tenant_id, prompt_id)
            except NoSuchPrompt:
                return None
            self._versions[tenant_id, prompt_id] = known
        return known


def _on_line(line: PromptLine, point: float) -> tuple[str, Track] | None:
    """The id of the version that a user at `point` gets, and its track. None where the line has none for them."""
    if line.rollout is not None and point < line.rollout.stage.share:
        return line.rollout.prompt_id, "canary"
    return (line.production.prompt_id, "stable") if line.production is not None else None


def template_of(version: Version, track: Track) -> PromptTemplate:
    """What an upgrade needs of a version."""
    used = PromptVersion(name=version.name, version=version.version, prompt_id=version.prompt_id, track=track)
    return PromptTemplate(version.template, version.parameters, used)
