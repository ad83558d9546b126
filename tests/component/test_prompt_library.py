"""Versions and lines of prompt templates in the upgrader's store. Run on both stores (tests/cluster has the other)."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from services.upgrader.prompts.library import (
    LINES,
    VERSIONS,
    NewVersion,
    NoSuchPrompt,
    PromptLibrary,
    PromptRefused,
    Version,
)
from services.upgrader.prompts.platform_templates import platform_versions
from services.upgrader.prompts.rollouts import PromptRef, RolloutRefused, promote, roll_back, start_rollout
from shared.contracts.contract import new_id, now_utc
from shared.contracts.prompts import PromptChanged, PromptParameters, PromptStage, PromptType
from shared.llm.templates import TemplateRefused
from shared.messaging.errors import Transient
from shared.storage.documents import Database
from shared.storage.sqlite import SqliteDatabase

PLATFORM_IDS = {version.version: version.prompt_id for version in platform_versions() if version.name == "upgrader"}
TEXT = "Rewrite it. {{ data_rules }} {{ contract }}"
TENANT, OTHER = "tenant-a", "tenant-b"


@dataclass
class Topic:
    """Takes what is published, as a compacted topic does; out while `broken`."""

    events: dict[str, PromptChanged] = field(default_factory=dict)
    ids: list[str] = field(default_factory=list)
    broken: bool = False

    async def __call__(self, event_id: str, key: str, changed: PromptChanged) -> None:
        if self.broken:
            raise Transient("broker out")
        self.events[key] = changed
        self.ids.append(event_id)


@pytest.fixture
def open_prompt_database(tmp_path: Path) -> Callable[[], Database]:
    return lambda: SqliteDatabase(tmp_path / "upgrader.sqlite3")


@pytest.fixture
def topic() -> Topic:
    return Topic()


@pytest.fixture
async def replicas(
    open_prompt_database: Callable[[], Database], topic: Topic
) -> AsyncIterator[tuple[PromptLibrary, PromptLibrary]]:
    """Two processes on one store."""
    databases = [open_prompt_database() for _ in range(2)]
    libraries = [PromptLibrary(d.collection(VERSIONS), d.collection(LINES), topic) for d in databases]
    for database in databases:
        await database.start()
    yield libraries[0], libraries[1]
    for database in databases:
        await database.stop(1)


def new(name: str = "upgrader", template: str = TEXT, type_: PromptType = PromptType.UPGRADER) -> NewVersion:
    return NewVersion(name, type_, template, "", PromptParameters(), "ann")


async def made(library: PromptLibrary, name: str = "upgrader", tenant: str | None = TENANT) -> Version:
    return (await library.create(tenant, new(name), new_id()))[0]


async def start(library: PromptLibrary, version: Version) -> None:
    ref = PromptRef(prompt_id=version.prompt_id, version=version.version)
    await library.step(
        version.tenant_id,
        version.name,
        lambda line: start_rollout(line, ref, minimum_runs=50, max_error_rate=0.05, gates=[], by="ann", now=now_utc()),
    )


async def test_versions_count_up_and_are_told(replicas: tuple[PromptLibrary, PromptLibrary], topic: Topic) -> None:
    first, second = [await made(library) for library in replicas]
    assert (first.version, second.version) == (1, 2)
    assert topic.events[second.prompt_id].stage is PromptStage.DEVELOPMENT
    assert topic.events[second.prompt_id].template == TEXT
    found = await replicas[0].page(TENANT, name=None, type_=None, before=None, limit=10)
    assert [version.version for version in found] == [2, 1]


async def test_versions_made_at_once_get_numbers_of_their_own(replicas: tuple[PromptLibrary, PromptLibrary]) -> None:
    versions = await asyncio.gather(*(made(replicas[number % 2]) for number in range(12)))
    assert sorted(version.version for version in versions) == list(range(1, 13))


async def test_the_same_id_makes_one_version(replicas: tuple[PromptLibrary, PromptLibrary]) -> None:
    prompt_id = new_id()
    one, _ = await replicas[0].create(TENANT, new(), prompt_id)
    again, _ = await replicas[1].create(TENANT, new(), prompt_id)
    assert one == again


async def test_tenants_never_meet(replicas: tuple[PromptLibrary, PromptLibrary]) -> None:
    library = replicas[0]
    version = await made(library)
    with pytest.raises(NoSuchPrompt):
        await library.version(OTHER, version.prompt_id)
    assert await library.page(OTHER, name=None, type_=None, before=None, limit=10) == []
    assert (await made(library, tenant=OTHER)).version == 1


@pytest.mark.parametrize(
    ("version", "field"),
    [
        (new("upgrader", type_=PromptType.SUMMARIZER), "type"),
        (new("mine", type_=PromptType.RAG_QUERY), "type"),
        (new("summarizer", type_=PromptType.CUSTOM), "type"),
    ],
)
async def test_what_is_refused(replicas: tuple[PromptLibrary, PromptLibrary], version: NewVersion, field: str) -> None:
    with pytest.raises(PromptRefused) as refused:
        await replicas[0].create(TENANT, version, new_id())
    assert refused.value.field == field


async def test_a_name_keeps_its_type(replicas: tuple[PromptLibrary, PromptLibrary]) -> None:
    await replicas[0].create(TENANT, new("mine", type_=PromptType.CUSTOM), new_id())
    with pytest.raises(PromptRefused, match="are of type CUSTOM"):
        await replicas[0].create(TENANT, new("mine"), new_id())


async def test_a_broken_template_leaves_nothing(replicas: tuple[PromptLibrary, PromptLibrary], topic: Topic) -> None:
    with pytest.raises(TemplateRefused):
        await replicas[0].create(TENANT, new(template="{{ nonsense }}"), new_id())
    assert (await replicas[0].page(TENANT, name=None, type_=None, before=None, limit=10), topic.events) == ([], {})


async def test_two_tabs_take_each_step_once(replicas: tuple[PromptLibrary, PromptLibrary]) -> None:
    version = await made(replicas[0])
    await start(replicas[0], version)
    with pytest.raises(RolloutRefused):
        await start(replicas[1], version)

    def once(line):  # type: ignore[no-untyped-def]
        if line.rollout is None or line.rollout.stage is not PromptStage.CANARY_5:
            raise RolloutRefused("done already")
        return promote(line, "daily", "job", now_utc())

    outcomes = await asyncio.gather(
        *(replicas[number % 2].step(TENANT, "upgrader", once) for number in range(8)), return_exceptions=True
    )
    assert sum(not isinstance(outcome, Exception) for outcome in outcomes) == 1
    line = await replicas[0].line(TENANT, "upgrader")
    assert line.rollout is not None
    assert line.rollout.stage is PromptStage.CANARY_25
    assert [found.name for found in await replicas[1].lines_with_rollouts()] == ["upgrader"]


async def test_a_change_that_was_not_published_goes_out_later(
    replicas: tuple[PromptLibrary, PromptLibrary], topic: Topic
) -> None:
    version = await made(replicas[0])
    topic.broken = True
    await start(replicas[0], version)
    assert topic.events[version.prompt_id].stage is PromptStage.DEVELOPMENT
    topic.broken = False
    assert await replicas[1].publish_unpublished() == 1
    assert topic.events[version.prompt_id].share == 0.05
    assert await replicas[1].publish_unpublished() == 0


async def test_a_lost_topic_is_written_again(replicas: tuple[PromptLibrary, PromptLibrary], topic: Topic) -> None:
    versions = [await made(replicas[0], tenant=tenant) for tenant in (TENANT, OTHER)]
    await start(replicas[0], versions[0])
    before = {key: event.stage for key, event in topic.events.items()}
    topic.events.clear()
    assert await replicas[1].publish_all() == 2
    assert await replicas[1].publish_unpublished() == 2
    assert {key: event.stage for key, event in topic.events.items()} == before


async def test_the_platform_has_its_versions(replicas: tuple[PromptLibrary, PromptLibrary], topic: Topic) -> None:
    await asyncio.gather(*(library.install_platform() for library in replicas))
    line = await replicas[0].line(None, "upgrader")
    assert line.production == PromptRef(prompt_id=PLATFORM_IDS[2], version=2)
    assert topic.events[PLATFORM_IDS[2]].stage is PromptStage.PRODUCTION
    assert topic.events[PLATFORM_IDS[1]].tenant_id is None
    # A later start changes nothing, whatever is in production by then.
    other = PromptRef(prompt_id=PLATFORM_IDS[1], version=1)
    await replicas[0].step(None, "upgrader", lambda line: line.model_copy(update={"production": other}))
    await replicas[1].install_platform()
    assert (await replicas[1].line(None, "upgrader")).production == other


async def test_a_rollback_is_told_with_its_reason(replicas: tuple[PromptLibrary, PromptLibrary], topic: Topic) -> None:
    version = await made(replicas[0])
    await start(replicas[0], version)
    await replicas[1].step(
        TENANT, "upgrader", lambda line: roll_back(line, version.prompt_id, "worse", "guard", now_utc())
    )
    event = topic.events[version.prompt_id]
    assert (event.stage, event.share, event.reason) == (PromptStage.ROLLED_BACK, 0.0, "worse")
