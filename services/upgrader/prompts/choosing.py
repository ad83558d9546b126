"""Chooses the version of a template that an upgrade uses: the one it names, the tenant's own, or the platform's."""

from cachetools import TTLCache

from services.upgrader.prompts.library import NoSuchPrompt, PromptLibrary, Version
from services.upgrader.prompts.platform_templates import PromptTemplate
from shared.contracts.prompts import REWRITING
from shared.contracts.upgrade_results import PromptVersion, Track
from shared.contracts.upgrade_tasks import UpgradeTask
from shared.messaging.errors import Transient
from shared.storage.documents import StorageUnavailable

_KNOWN_FOR_SECONDS = 2.0
_MOST_KNOWN = 10_000


class PromptChooser:
    """Asks the library; what is in production is known for 2 s, so that most upgrades cost no read."""

    def __init__(self, library: PromptLibrary) -> None:
        self._library = library
        self._known: TTLCache[tuple[str, str], PromptTemplate] = TTLCache(_MOST_KNOWN, _KNOWN_FOR_SECONDS)

    async def choose(self, task: UpgradeTask) -> PromptTemplate:
        """The version for an upgrade. A version that is named and unknown gives way to the one in production.

        Raises Transient where the store is out, or has no version of the name yet.
        """
        try:
            if task.options.prompt_id is not None:
                version = await self._named(task.tenant_id, task.options.prompt_id)
                if version is not None and version.type in REWRITING:
                    return template_of(version, "pinned")
            known = self._known.get((task.tenant_id, task.options.template_name))
            if known is None:
                known = await self._in_production(task.tenant_id, task.options.template_name)
                self._known[task.tenant_id, task.options.template_name] = known
            return known
        except StorageUnavailable as error:
            raise Transient(f"storage: {error}") from error

    async def _named(self, tenant_id: str, prompt_id: str) -> Version | None:
        try:
            return await self._library.version(tenant_id, prompt_id)
        except NoSuchPrompt:
            return None

    async def _in_production(self, tenant_id: str, name: str) -> PromptTemplate:
        for owner in (tenant_id, None):
            try:
                line = await self._library.line(owner, name)
            except NoSuchPrompt:
                continue
            if line.production is not None:
                return template_of(await self._library.version(tenant_id, line.production.prompt_id), "stable")
        raise Transient(f"no version of the template {name} is in production")


def template_of(version: Version, track: Track) -> PromptTemplate:
    """What an upgrade needs of a version."""
    used = PromptVersion(name=version.name, version=version.version, prompt_id=version.prompt_id, track=track)
    return PromptTemplate(version.template, version.parameters, used)
