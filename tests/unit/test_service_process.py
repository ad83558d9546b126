"""The life cycle of a real child process: signals, draining and exit codes."""

import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]
SERVICE = """
import asyncio, sys
from fastapi import APIRouter
from shared.service.process import run, run_service
from shared.service.http import internal_app
from shared.service.settings import ObservabilitySettings
from shared.service.telemetry import setup

telemetry = setup("example", ObservabilitySettings(_env_file=None))
mode, port, grace = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])

class Part:
    def __init__(self, name): self.name = name
    async def start(self):
        print("start", self.name, flush=True)
        if mode == "broken" and self.name == "second": raise ConnectionError("broker is away")
        if mode == "slow-start" and self.name == "second": await asyncio.sleep(3600)
    async def stop(self, grace_seconds):
        print("stop", self.name, flush=True)
        if mode == "stuck" and self.name == "second": await asyncio.Event().wait()

router = APIRouter(prefix="/internal")

@router.get("/slow")
async def slow():
    print("request began", flush=True)
    await asyncio.sleep(0.5)
    return {}

@router.get("/fatal")
async def fatal():
    telemetry.fatal("no progress")
    return {}

app = internal_app(telemetry, internal_token="t", routers=[router])
parts = [Part("first"), Part("second")]
run(run_service(telemetry=telemetry, http_app=app, host="127.0.0.1", port=port, components=parts, grace_seconds=grace))
"""
HEADERS = {"X-Internal-Token": "t"}


def unused_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class Child:
    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process = process
        self.http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=HEADERS)

    async def until_ready(self) -> None:
        deadline = time.monotonic() + 30
        while True:
            assert time.monotonic() < deadline, "the service did not become ready"
            assert self.process.returncode is None, "the service ended"
            with suppress(httpx.HTTPError):
                if (await self.http.get("/health/ready")).status_code == 200:
                    return
            await asyncio.sleep(0.05)

    async def until_line(self, part: str) -> None:
        assert self.process.stdout is not None
        while part not in (await asyncio.wait_for(self.process.stdout.readline(), 30)).decode():
            pass

    async def ended(self) -> tuple[int | None, list[str], str]:
        out, err = await asyncio.wait_for(self.process.communicate(), 30)
        return self.process.returncode, out.decode().splitlines(), err.decode()


@asynccontextmanager
async def child(mode: str, grace: float = 4.0, port: int | None = None) -> AsyncIterator[Child]:
    port = port or unused_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVICE, mode, str(port), str(grace),
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    service = Child(process, port)
    try:
        yield service
    finally:
        await service.http.aclose()
        if process.returncode is None:
            process.kill()
            await process.communicate()


def steps(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith(("start", "stop "))]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_in_reverse_order(number: signal.Signals) -> None:
    async with child("well") as service:
        await service.until_ready()
        service.process.send_signal(number)
        code, lines, errors = await service.ended()
    assert (code, errors) == (0, "")
    assert steps(lines) == ["start first", "start second", "stop second", "stop first"]
    events = [json.loads(line)["event"] for line in lines if line.startswith("{")]
    assert events == ["serving", "draining", "stopped"]


async def test_an_open_request_is_answered_before_components_stop() -> None:
    async with child("well") as service:
        await service.until_ready()
        request = asyncio.create_task(service.http.get("/internal/slow"))
        await service.until_line("request began")
        service.process.terminate()
        assert (await request).status_code == 200
        assert (await service.ended())[0] == 0


async def test_invalid_http_gets_a_problem_response() -> None:
    async with child("well") as service:
        await service.until_ready()
        reader, writer = await asyncio.open_connection("127.0.0.1", service.http.base_url.port)
        writer.write(b"GARBAGE\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
    assert b"application/problem+json" in answer
    assert b'"code":"invalid_header"' in answer


async def test_a_taken_port_is_one_line_and_exit_2() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        async with child("well", port=port) as service:
            code, lines, errors = await service.ended()
    assert code == 2
    assert errors == f"wrong setting: EXAMPLE_PORT: port {port} is taken\n"
    assert steps(lines) == []


async def test_a_component_that_does_not_start_ends_the_process_and_is_named() -> None:
    async with child("broken") as service:
        code, lines, _ = await service.ended()
    assert code == 1
    assert steps(lines) == ["start first", "start second", "stop second", "stop first"]
    failure = next(json.loads(line) for line in lines if '"error"' in line and line.startswith("{"))
    assert failure["part"] == "Part"
    assert failure["error"] == "ConnectionError: broker is away"


async def test_a_signal_during_a_slow_start_ends_it() -> None:
    async with child("slow-start") as service:
        await service.until_line("start second")
        service.process.terminate()
        assert (await service.ended())[0] == 0


async def test_fatal_exits_70() -> None:
    async with child("well") as service:
        await service.until_ready()
        with suppress(httpx.HTTPError):
            await service.http.get("/internal/fatal")
        code, lines, _ = await service.ended()
    assert code == 70
    assert any('"reason":"no progress"' in line for line in lines)


async def test_a_component_that_does_not_stop_is_skipped() -> None:
    async with child("stuck", grace=1.0) as service:
        await service.until_ready()
        service.process.terminate()
        code, lines, _ = await service.ended()
    assert code == 0
    assert steps(lines)[-1] == "stop first"
    assert any("did not stop in time" in line for line in lines)
