"""The command line of the local stack: start, status, restarts, logs and stop. All tests share one stack."""

import asyncio
import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from deploy.local.processes import is_running
from deploy.local.stack_plan import SERVICES
from tests.conftest import REPOSITORY, eventually
from tests.running_stack import RunningStack

_START_SECONDS = 100


@pytest.fixture(scope="module")
async def local(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningStack]:
    stack = RunningStack(tmp_path_factory.mktemp("stack") / "data")
    await stack.start(sample=True)
    yield stack
    stack.run("stop")


def test_the_start_shows_an_upgraded_sample_and_how_to_go_on(local: RunningStack) -> None:
    endpoints = local.endpoints()
    assert "upgraded, " in local.start_output
    assert "This was the offline model" in local.start_output
    assert f"gateway   {endpoints['gateway']}" in local.start_output
    assert f"docs      {endpoints['gateway']}/docs" in local.start_output
    assert f"API key   {local.key}" in local.start_output


def test_the_curl_line_works_when_pasted(local: RunningStack) -> None:
    line = next(line for line in local.start_output.splitlines() if line.startswith("curl "))
    words = shlex.split(line)
    headers = dict(words[i + 1].split(": ", 1) for i, word in enumerate(words) if word == "-H")
    answer = httpx.post(words[2], content=words[-1], headers=headers, timeout=60, trust_env=False)
    assert answer.status_code == 200, answer.text
    assert answer.json()["status"] == "upgraded"


def test_endpoints_hold_every_address_and_pid(local: RunningStack) -> None:
    endpoints = local.endpoints()
    assert set(endpoints) == {"gateway", "kafka", "redis", "mongodb", "model", "services", "pids"}
    assert endpoints["mongodb"] is None
    assert endpoints["model"].endswith("/v1")
    assert set(endpoints["services"]) == set(SERVICES) - {"gateway"}
    assert set(endpoints["pids"]) == {*SERVICES, "broker", "redis", "model"}
    assert all(is_running(pid) for pid in endpoints["pids"].values())
    for url in (endpoints["gateway"], *endpoints["services"].values()):
        assert httpx.get(f"{url}/health/ready", trust_env=False).status_code == 200


def test_secrets_are_for_their_owner_only(local: RunningStack) -> None:
    for name in ("demo-key", "vault-key", "internal-token", "endpoints.json"):
        assert (local.data_dir / name).stat().st_mode & 0o777 == 0o600, name
    assert local.key.startswith("pu_")
    assert local.data_dir.stat().st_mode & 0o777 == 0o700
    databases = list(local.data_dir.rglob("*.sqlite3"))
    assert databases
    assert all(file.stat().st_mode & 0o077 == 0 for file in databases)


def test_status_shows_every_part_and_the_memory_fits(local: RunningStack) -> None:
    report = local.status()
    assert report["ready"]
    assert set(report["parts"]) == {*SERVICES, "broker", "redis", "model"}
    assert report["supervisor"]["memoryMb"] < 45
    assert report["memoryMb"] < 1300, report


def test_a_second_start_reports_the_running_stack(local: RunningStack) -> None:
    second = local.run("run")
    assert second.returncode == 1
    assert "it is already running" in second.stderr
    assert len(second.stderr.strip().splitlines()) == 1


def test_a_taken_gateway_port_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = str(holder.getsockname()[1])
        refused = RunningStack(tmp_path).run("run", GATEWAY_PORT=port)
    assert refused.returncode == 2
    assert refused.stderr == f"port {port} on 127.0.0.1 is taken: set GATEWAY_PORT to another one\n"


def test_a_wrong_setting_is_one_line(tmp_path: Path) -> None:
    refused = RunningStack(tmp_path).run("run", GATEWAY_PORT="many")
    assert refused.returncode == 2
    assert refused.stderr.startswith("wrong setting: GATEWAY_PORT: ")
    assert len(refused.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("KAFKA_SESSION_TIMEOUT_MS", "soon"),
        ("KAFKA_BOOTSTRAP_SERVERS", "nope"),
        ("REDIS_URL", "nope"),
        ("MONGODB_URL", "nope"),
        ("REDIS_URL", "redis://127.0.0.1:1/0"),
    ],
)
def test_a_wrong_setting_of_a_service_is_one_line_before_anything_starts(tmp_path: Path, name: str, value: str) -> None:
    refused = RunningStack(tmp_path).run("run", "--no-sample", **{name: value})
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"wrong setting: {name}: ")
    assert len(refused.stderr.splitlines()) == 1
    assert refused.stdout == ""


def test_a_tool_without_a_stack_is_one_line(tmp_path: Path) -> None:
    for command in (("-m", "services.usage.reconciling.command"), ("-m", "shared.messaging.operate.events")):
        refused = RunningStack(tmp_path).run("env", "--", sys.executable, *command)
        assert refused.returncode == 3
        assert refused.stderr == "the stack is not running: `make run` starts it\n"


def test_a_cluster_start_names_missing_programs(tmp_path: Path) -> None:
    refused = RunningStack(tmp_path).run("run", "--cluster", PATH=str(tmp_path))
    assert refused.returncode == 1
    assert "Java 17" in refused.stderr
    assert "Maven" in refused.stderr


def test_logs_are_kept_for_each_part(local: RunningStack) -> None:
    shown = local.run("logs", "gateway", "-n", "5")
    assert shown.returncode == 0
    assert all(line.startswith("gateway") for line in shown.stdout.splitlines())
    assert local.run("logs", "nothing").returncode == 1


def test_a_tool_gets_the_address_of_the_stack(local: RunningStack) -> None:
    printed = local.run("env", "--", sys.executable, "-c", "import os; print(os.environ['KAFKA_BOOTSTRAP_SERVERS'])")
    assert printed.stdout.strip() == local.endpoints()["kafka"]


@pytest.mark.parametrize("part", ["upgrader", "redis", "broker"])
async def test_a_killed_process_is_replaced_where_it_was_and_upgrades_go_on(local: RunningStack, part: str) -> None:
    before = local.endpoints()
    os.kill(before["pids"][part], signal.SIGKILL)

    async def replaced() -> bool:
        return bool(local.endpoints()["pids"][part] != before["pids"][part]) and bool(local.status()["ready"])

    await eventually(replaced, 40)
    after = local.endpoints()
    assert {**after, "pids": {}} == {**before, "pids": {}}
    assert (await local.upgrade(f"explain what happens after the {part} has died"))["status"] == "upgraded"


async def test_stop_ends_every_process_and_a_second_start_is_quick(local: RunningStack) -> None:
    pids = local.all_pids()
    stopped = local.run("stop")
    assert stopped.returncode == 0, stopped.stderr
    assert not any(is_running(pid) for pid in pids)
    assert not (local.data_dir / "endpoints.json").exists()
    assert local.run("status").returncode == 3
    begun = time.monotonic()
    assert local.run("run", "--detach").returncode == 0
    busy = "PYTEST_XDIST_WORKER" in os.environ or os.getloadavg()[0] > 1.5
    assert time.monotonic() - begun < (60 if busy else 15)


async def test_a_killed_supervisor_leaves_no_process_behind(local: RunningStack) -> None:
    pids = local.all_pids()
    os.kill(pids[0], signal.SIGKILL)

    async def all_gone() -> bool:
        return not any(is_running(pid) for pid in pids)

    await eventually(all_gone, 10)


async def test_ctrl_c_in_the_foreground_drains_and_ends_everything(local: RunningStack) -> None:
    command = [sys.executable, "-m", "deploy.local", "run", "--no-sample"]
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=REPOSITORY,
        env=local.environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    seen = b""
    async with asyncio.timeout(_START_SECONDS):
        while b"| ready after" not in seen:
            seen += await process.stdout.readline()
    pids = local.all_pids()
    process.send_signal(signal.SIGINT)
    rest, _ = await asyncio.wait_for(process.communicate(), 60)
    lines = (seen + rest).decode().splitlines()
    assert process.returncode == 0
    assert lines[-1].startswith("stack      | everything has ended")
    assert {line.partition(" ")[0] for line in lines} >= {*SERVICES, "stack"}
    assert not any(is_running(pid) for pid in pids)
