"""The supervisor with real child processes in place of the parts."""

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from deploy.local.managed_process import Part
from deploy.local.part_logs import OperatorOutput
from deploy.local.ports import choose_ports, port_is_free
from deploy.local.processes import ServerCommand
from deploy.local.readiness import http_ready
from deploy.local.settings import LocalSettings
from deploy.local.stack_plan import SERVICES, StackPlan
from deploy.local.supervisor import Supervisor
from tests.conftest import eventually

SCRIPT = Path(__file__).parent / "supervised_part.py"


class Stack:
    """A supervisor with stand-in parts, running as a task."""

    def __init__(self, folder: Path, behaviours: dict[str, str], *, start_seconds: float = 20.0) -> None:
        self.folder = folder
        self.settings = LocalSettings(
            data_dir=folder, local_start_timeout_seconds=start_seconds, shutdown_grace_seconds=1, _env_file=None
        )
        names = ("broker", "redis", *SERVICES)
        self.ports = choose_ports(names)
        self.topics_created = 0
        parts = {name: self._part(name, behaviours.get(name, "serve")) for name in names}
        plan = StackPlan(parts, dict(os.environ), {"gateway": "http://x", "services": {}}, False)
        self.output = OperatorOutput(folder, None)
        self.supervisor = Supervisor(self.settings, plan, self.output)
        self.task = asyncio.create_task(self.supervisor.run(None))

    def _part(self, name: str, behaviour: str) -> Part:
        port = self.ports[name]

        async def ready() -> None:
            await http_ready("127.0.0.1", port)

        async def created() -> None:
            self.topics_created += 1

        argv = (sys.executable, "-S", str(SCRIPT), str(port), str(self.folder / name), behaviour)
        after: Callable[[], Awaitable[None]] | None = created if name == "broker" else None
        return Part(name, lambda: ServerCommand(name, argv, port, f"http://127.0.0.1:{port}", ready), os.environ, after)

    async def ready(self) -> dict[str, int]:
        async def there() -> bool:
            assert not self.task.done(), self.log()
            return (self.folder / "endpoints.json").exists()

        await eventually(there, 20)
        return self.pids()

    def pids(self) -> dict[str, int]:
        pids: dict[str, int] = json.loads((self.folder / "endpoints.json").read_text())["pids"]
        return pids

    def log(self) -> str:
        return (self.folder / "logs" / "supervisor.log").read_text()

    def diary(self) -> list[str]:
        return (self.folder / "diary").read_text().splitlines()

    async def end(self) -> int:
        if not self.task.done():
            os.kill(os.getpid(), signal.SIGTERM)
        return await asyncio.wait_for(self.task, 30)


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Callable[..., Stack]]:
    stacks: list[Stack] = []

    def started(**options: object) -> Stack:
        stacks.append(Stack(tmp_path, options.pop("behaviours", {}), **options))  # type: ignore[arg-type]
        return stacks[-1]

    yield started
    for stack in stacks:
        if not stack.task.done():
            stack.task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await stack.task
        stack.output.close()


def alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


async def test_servers_start_before_services_and_services_stop_in_the_order_of_the_pipeline(
    start: Callable[..., Stack],
) -> None:
    stack = start()
    pids = await stack.ready()
    assert await stack.end() == 0
    diary = stack.diary()
    begun = [line.removeprefix("start ") for line in diary if line.startswith("start")]
    ended = [line.removeprefix("end ") for line in diary if line.startswith("end")]
    assert set(begun[:2]) == {"broker", "redis"}
    assert ended[: len(SERVICES)] == list(SERVICES)
    assert set(ended[len(SERVICES) :]) == {"broker", "redis"}
    assert not any(alive(pid) for pid in pids.values())
    assert not (stack.folder / "endpoints.json").exists()


async def test_a_dead_process_is_started_again_at_once_on_the_same_port(start: Callable[..., Stack]) -> None:
    stack = start()
    before = await stack.ready()
    os.kill(before["rag"], signal.SIGKILL)

    async def replaced() -> bool:
        return stack.pids()["rag"] != before["rag"] and "rag is ready again" in stack.log()

    await eventually(replaced, 10)
    await http_ready("127.0.0.1", stack.ports["rag"])
    others = {name: pid for name, pid in stack.pids().items() if name != "rag"}
    assert others == {name: pid for name, pid in before.items() if name != "rag"}
    assert "rag ended (by SIGKILL); starting it again in 0.2 s" in stack.log()
    assert await stack.end() == 0


async def test_topics_are_created_again_after_the_broker_is_replaced(start: Callable[..., Stack]) -> None:
    stack = start()
    before = await stack.ready()
    assert stack.topics_created == 1
    os.kill(before["broker"], signal.SIGKILL)

    async def created_again() -> bool:
        return stack.topics_created == 2

    await eventually(created_again, 10)
    assert await stack.end() == 0


async def test_a_part_that_cannot_start_is_named_with_its_last_lines_and_everything_ends(
    start: Callable[..., Stack],
) -> None:
    stack = start(behaviours={"upgrader": "fail"})
    assert await asyncio.wait_for(stack.task, 30) == 1
    assert "upgrader ended at its start, exit code 2." in stack.log()
    assert "upgrader: the setting THAT_THING is wrong" in stack.log()
    assert all(port_is_free("127.0.0.1", port) for port in stack.ports.values())


async def test_a_part_that_does_not_become_ready_in_time_is_named(start: Callable[..., Stack]) -> None:
    stack = start(behaviours={"usage": "hang"}, start_seconds=1.5)
    assert await asyncio.wait_for(stack.task, 30) == 1
    assert "usage was not ready within 2 s" in stack.log()
    assert "usage: waiting for nothing" in stack.log()


async def test_a_service_that_does_not_drain_is_killed_after_its_grace(start: Callable[..., Stack]) -> None:
    stack = start(behaviours={"rag": "ignore-term"})
    pids = await stack.ready()
    assert await stack.end() == 0
    assert re.search(r"rag did not end within [56] s and is killed", stack.log())
    assert not any(alive(pid) for pid in pids.values())


async def test_a_process_over_its_memory_limit_is_replaced(start: Callable[..., Stack], tmp_path: Path) -> None:
    stack = start()
    before = await stack.ready()
    broker = stack.supervisor._processes["broker"]
    object.__setattr__(broker.part, "memory_limit_mb", 1)

    async def replaced() -> bool:
        return stack.pids()["broker"] != before["broker"]

    await eventually(replaced, 10)
    object.__setattr__(broker.part, "memory_limit_mb", None)
    assert "broker is being replaced: it uses" in stack.log()
    assert await stack.end() == 0


async def test_a_signal_that_arrives_twice_is_one_request(start: Callable[..., Stack]) -> None:
    stack = start()
    await stack.ready()
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    assert await asyncio.wait_for(stack.task, 30) == 0
    assert "ending at once" not in stack.log()
    assert "end gateway" in stack.diary()
