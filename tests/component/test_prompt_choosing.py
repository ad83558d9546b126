"""Which version of a template an upgrade gets, and on which track."""

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from services.upgrader.prompts.choosing import PromptChooser
from services.upgrader.prompts.library import LINES, VERSIONS, NewVersion, PromptLibrary, Version
from services.upgrader.prompts.platform_templates import PLATFORM_TEMPLATE
from services.upgrader.prompts.rollouts import PromptLine, PromptRef, promote, roll_back, start_rollout
from shared.contracts.contract import new_id, now_utc
from shared.contracts.prompts import PromptChanged, PromptParameters, PromptType
from shared.contracts.upgrade_tasks import TaskOptions
from shared.messaging.errors import Transient
from shared.storage.sqlite import SqliteDatabase
from tests.unit.upgrade_fixtures import make_task

TEXT = "Rewrite it. {{ data_rules }} {{ contract }}"
TENANT, OTHER = "tenant-a", "tenant-b"
USERS = [f"user-{number}" for number in range(400)]


async def published_nowhere(event_id: str, key: str, changed: PromptChanged) -> None: ...


@pytest.fixture
async def library(tmp_path: Path) -> AsyncIterator[PromptLibrary]:
    database = SqliteDatabase(tmp_path / "upgrader.sqlite3")
    library = PromptLibrary(database.collection(VERSIONS), database.collection(LINES), published_nowhere)
    await database.start()
    await library.install_platform()
    yield library
    await database.stop(1)


async def own_version(library: PromptLibrary) -> Version:
    new = NewVersion("upgrader", PromptType.UPGRADER, TEXT, "", PromptParameters(), "someone")
    version, _ = await library.create(TENANT, new, new_id())
    return version


def started(line: PromptLine, version: Version) -> PromptLine:
    ref = PromptRef(prompt_id=version.prompt_id, version=version.version)
    return start_rollout(line, ref, minimum_runs=1, max_error_rate=0.5, gates=[], by="someone", now=now_utc())


def one_further(line: PromptLine) -> PromptLine:
    return promote(line, "by hand", "someone", now_utc())


async def users_of(library: PromptLibrary, version: Version, tenant_id: str = TENANT) -> set[str]:
    """The users that a new process gives the version to; everybody else gets the platform's."""
    chooser, on_version = PromptChooser(library), set()
    for user in USERS:
        chosen = await chooser.choose(make_task(tenant_id=tenant_id, user_ref=user))
        if chosen.version.prompt_id == version.prompt_id:
            assert chosen.text == TEXT
            on_version.add(user)
        else:
            assert (chosen.version, chosen.text) == (PLATFORM_TEMPLATE.version, PLATFORM_TEMPLATE.text)
    return on_version


async def test_a_growing_share_moves_nobody_back(library: PromptLibrary) -> None:
    version = await own_version(library)
    assert await users_of(library, version) == set()
    await library.step(TENANT, "upgrader", partial(started, version=version))
    shares, before = [], set[str]()
    for _ in range(3):
        now = await users_of(library, version)
        assert before <= now
        shares.append(len(now) / len(USERS))
        before = now
        await library.step(TENANT, "upgrader", one_further)
    assert shares == pytest.approx([0.05, 0.25, 0.5], abs=0.07)
    assert await users_of(library, version) == set(USERS)
    assert await users_of(library, version, OTHER) == set()


async def test_a_canary_that_is_rolled_back_reaches_nobody(library: PromptLibrary) -> None:
    version = await own_version(library)
    await library.step(TENANT, "upgrader", partial(started, version=version))
    assert await users_of(library, version)
    taken_back = partial(roll_back, prompt_id=version.prompt_id, reason="worse", by="someone", now=now_utc())
    await library.step(TENANT, "upgrader", taken_back)
    assert await users_of(library, version) == set()


async def test_an_upgrade_without_a_user_stays_on_its_track_when_it_is_repeated(library: PromptLibrary) -> None:
    version = await own_version(library)
    await library.step(TENANT, "upgrader", partial(started, version=version))
    tasks = [make_task(tenant_id=TENANT, user_ref=None, upgrade_id=new_id()) for _ in range(50)]
    chosen = [[(await PromptChooser(library).choose(task)).version for task in tasks] for _ in range(2)]
    assert chosen[0] == chosen[1]


async def test_a_named_version_is_pinned_and_only_its_tenants(library: PromptLibrary) -> None:
    version = await own_version(library)
    options = TaskOptions(prompt_id=version.prompt_id)
    pinned = await PromptChooser(library).choose(make_task(tenant_id=TENANT, options=options))
    assert (pinned.version.prompt_id, pinned.version.track) == (version.prompt_id, "pinned")
    foreign = await PromptChooser(library).choose(make_task(tenant_id=OTHER, options=options))
    assert foreign.version == PLATFORM_TEMPLATE.version


async def test_an_unknown_template_waits(library: PromptLibrary) -> None:
    with pytest.raises(Transient):
        await PromptChooser(library).choose(make_task(options=TaskOptions(template_name="nobody's")))
