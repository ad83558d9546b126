"""Local servers (broker, Valkey): starting, failing to start, restarting, and ending with their parent process."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from redis.asyncio import Redis

from deploy.local import servers
from deploy.local.server_commands import ServerCommand, port_answers
from tests.conftest import REPOSITORY, eventually, free_port

PARENT = """
import asyncio, sys
from deploy.local import servers
async def main():
    valkey = await servers.start_valkey()
    print(valkey.pid, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


async def test_a_restarted_embedded_broker_is_a_new_cluster() -> None:
    async def cluster_id(address: str) -> str:
        admin = AIOKafkaAdminClient(bootstrap_servers=address)
        await admin.start()
        try:
            described = await admin.describe_cluster()
        finally:
            await admin.close()
        return str(described["cluster_id"])

    async with await servers.start_tansu() as broker:
        first = await cluster_id(broker.url)
        port = broker.port
    async with await servers.start_tansu(port) as broker:
        assert await cluster_id(broker.url) != first


async def test_valkey_with_a_folder_keeps_its_data(tmp_path: Path) -> None:
    async with await servers.start_valkey(data_dir=tmp_path / "redis") as valkey:
        async with Redis.from_url(valkey.url) as redis:
            await redis.set("key", "value")
        await valkey.kill()
        assert not valkey.running
        await valkey.start()
        async with Redis.from_url(valkey.url) as redis:
            assert await redis.get("key") == b"value"


async def test_a_taken_port_is_named() -> None:
    async with await servers.start_valkey() as valkey:
        with pytest.raises(servers.ServerUnavailable, match=f"port {valkey.port} is taken"):
            await servers.start_valkey(valkey.port)


async def test_the_error_quotes_a_server_that_exits_at_once() -> None:
    command = ServerCommand(
        "broken", ("sh", "-c", "echo out of luck; exit 3"), free_port(), "", lambda: port_answers(1)
    )
    with pytest.raises(servers.ServerUnavailable, match=r"code 3[\s\S]*out of luck"):
        await servers.ServerProcess(command).start()


async def test_a_server_that_never_responds_is_killed() -> None:
    port = free_port()
    command = ServerCommand(
        "mute", ("sh", "-c", "echo waiting; exec sleep 600"), port, "", lambda: port_answers(port), 0.3
    )
    process = servers.ServerProcess(command)
    with pytest.raises(servers.ServerUnavailable, match=r"did not answer[\s\S]*waiting"):
        await process.start()
    assert not process.running


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's own")
async def test_a_server_dies_with_its_parent() -> None:
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PARENT), stdout=asyncio.subprocess.PIPE, cwd=REPOSITORY
    )
    assert parent.stdout is not None
    pid = int(await asyncio.wait_for(parent.stdout.readline(), 30.0))
    os.kill(pid, 0)
    parent.send_signal(signal.SIGKILL)
    await parent.wait()

    async def gone() -> bool:
        try:
            return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
        except FileNotFoundError:
            return True

    await eventually(gone)
