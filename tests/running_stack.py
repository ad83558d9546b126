"""Runs the whole local stack for a test through its own command line, and calls it over HTTP."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

_PROJECT = Path(__file__).parent.parent
_COMMAND_SECONDS = 150.0
_OUTSIDE_SERVERS = {"KAFKA_BOOTSTRAP_SERVERS", "REDIS_URL", "MONGODB_URL", "OPENAI_BASE_URL", "OPENAI_API_KEY"}
ENDED = {"upgraded", "cached", "original", "failed"}


class RunningStack:
    """A stack on its own data folder. `environment` is added to that of every command."""

    def __init__(self, data_dir: Path, *, cluster: bool = False, environment: dict[str, str] | None = None) -> None:
        self.data_dir = data_dir
        self.cluster = cluster
        self.start_output = ""
        self.environment = {
            **{name: value for name, value in os.environ.items() if name not in _OUTSIDE_SERVERS},
            "DATA_DIR": str(data_dir),
            "GATEWAY_PORT": "0",
            "LOG_LEVEL": "INFO",
            "RATE_LIMIT_PER_MINUTE": "100000",
            **(environment or {}),
        }

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self, *, sample: bool = False) -> None:
        """Returns when every part is ready; fails with the output of the command."""
        options = [*(["--cluster"] if self.cluster else []), *([] if sample else ["--no-sample"])]
        self.start_output = await self._succeed("run", "--detach", *options)

    async def stop(self) -> None:
        await self._succeed("stop")

    def run(self, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        """Runs `python -m deploy.local <arguments>` to its end; `variables` are added to the environment."""
        return subprocess.run(
            [sys.executable, "-m", "deploy.local", *arguments],
            cwd=_PROJECT,
            env={**self.environment, **variables},
            capture_output=True,
            text=True,
            timeout=_COMMAND_SECONDS,
            check=False,
        )

    def endpoints(self) -> dict[str, Any]:
        """The current addresses and process ids."""
        content: dict[str, Any] = json.loads((self.data_dir / "endpoints.json").read_bytes())
        return content

    def status(self) -> dict[str, Any]:
        """The report of the command `status`."""
        report: dict[str, Any] = json.loads(self.run("status", "--json").stdout)
        return report

    def all_pids(self) -> list[int]:
        """The process ids of the supervisor, first, and of all parts."""
        report = self.status()
        return [report["supervisor"]["pid"], *(part["pid"] for part in report["parts"].values())]

    @property
    def key(self) -> str:
        return (self.data_dir / "demo-key").read_text().strip()

    def client(self, **more: Any) -> httpx.AsyncClient:
        """An HTTP client of the demo tenant."""
        headers = {"X-API-Key": self.key, **more.pop("headers", {})}
        return httpx.AsyncClient(
            base_url=self.endpoints()["gateway"], headers=headers, timeout=70.0, trust_env=False, **more
        )

    async def upgrade(self, prompt: str) -> dict[str, Any]:
        """The answer of POST /api/upgrade."""
        async with self.client() as client:
            answer = await client.post("/api/upgrade", json={"userPrompt": prompt}, headers={"Prefer": "wait=60"})
            assert answer.status_code == 200, answer.text
            upgrade: dict[str, Any] = answer.json()
            return upgrade

    def pid(self, part: str) -> int:
        return int(self.endpoints()["pids"][part])

    async def kill(self, part: str) -> None:
        """Sends SIGKILL and returns when the part has been replaced."""
        killed = self.pid(part)
        os.kill(killed, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while self.endpoints()["pids"].get(part) in (None, killed):
            assert time.monotonic() < deadline, f"{part} was not replaced"
            await asyncio.sleep(0.05)

    async def ended(self, client: httpx.AsyncClient, upgrade_id: str, within: float = 90.0) -> dict[str, Any]:
        """The upgrade, once it has ended. Retries while the gateway is being replaced."""
        deadline = time.monotonic() + within
        while True:
            try:
                answer = await client.get(f"/api/upgrades/{upgrade_id}")
                if answer.status_code == 200 and answer.json()["status"] in ENDED:
                    upgrade: dict[str, Any] = answer.json()
                    return upgrade
            except httpx.TransportError:
                answer = None
            assert time.monotonic() < deadline, f"{upgrade_id} has not ended: {answer and answer.text}"
            await asyncio.sleep(0.2)

    async def _succeed(self, *arguments: str) -> str:
        completed = await asyncio.to_thread(self.run, *arguments)
        assert completed.returncode == 0, f"{arguments}: {(completed.stdout + completed.stderr)[-4000:]}"
        return completed.stdout
