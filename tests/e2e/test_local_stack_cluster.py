"""`python -m deploy.local run --cluster`: the services on Kafka and MongoDB, with data kept over a full restart."""

import os
import signal
from collections.abc import AsyncIterator

import pytest

from deploy.local.processes import is_running
from deploy.local.stack_plan import SERVICES
from tests.conftest import eventually
from tests.running_stack import RunningStack

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
async def local(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningStack]:
    stack = RunningStack(tmp_path_factory.mktemp("cluster") / "data", cluster=True)
    await stack.start(sample=True)
    yield stack
    stack.run("stop")


def test_the_services_run_on_kafka_and_mongodb(local: RunningStack) -> None:
    endpoints = local.endpoints()
    assert set(endpoints["pids"]) == {*SERVICES, "broker", "redis", "mongodb", "model"}
    assert endpoints["mongodb"].startswith("mongodb://")
    assert local.status()["ready"]
    assert not list(local.data_dir.rglob("*.sqlite3"))


async def test_a_killed_kafka_comes_back_with_its_log(local: RunningStack) -> None:
    before = local.endpoints()
    os.kill(before["pids"]["broker"], signal.SIGKILL)

    async def replaced() -> bool:
        return bool(local.endpoints()["pids"]["broker"] != before["pids"]["broker"]) and bool(local.status()["ready"])

    await eventually(replaced, 100)
    assert (await local.upgrade("explain what a broker is"))["status"] == "upgraded"


async def test_upgrades_survive_a_full_restart(local: RunningStack) -> None:
    upgrade = await local.upgrade("write a haiku about restarts")
    pids = local.all_pids()
    assert local.run("stop").returncode == 0
    assert not any(is_running(pid) for pid in pids)
    started = local.run("run", "--detach", "--cluster", "--no-sample")
    assert started.returncode == 0, started.stdout + started.stderr
    async with local.client() as client:
        assert (await client.get(f"/api/upgrades/{upgrade['id']}")).json() == upgrade
    assert (await local.upgrade("and one about keys"))["status"] == "upgraded"
