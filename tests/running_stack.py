"""The whole system as its users meet it: started by its own command, spoken to over HTTP and Kafka only."""

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

_PROJECT = Path(__file__).parent.parent
_START_SECONDS = 150.0
_STOP_SECONDS = 60.0
ENDED = {"upgraded", "cached", "original", "failed"}


class RunningStack:
    """A stack in a folder of its own. `environment` is added to what it is started with."""

    def __init__(self, data_dir: Path, *, cluster: bool = False, environment: dict[str, str] | None = None) -> None:
        self.data_dir = data_dir
        self.cluster = cluster
        self._environment = {
            **os.environ,
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

    async def start(self) -> None:
        """Returns when everything is ready; fails with what the command printed."""
        more = ["--cluster"] if self.cluster else []
        await self._local("run", "--detach", "--no-sample", *more, within=_START_SECONDS)

    async def stop(self) -> None:
        await self._local("stop", within=_STOP_SECONDS)

    async def _local(self, *arguments: str, within: float) -> str:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "deploy.local",
            *arguments,
            cwd=_PROJECT,
            env=self._environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await asyncio.wait_for(process.communicate(), within)
        assert process.returncode == 0, f"{arguments}: {output.decode()[-4000:]}"
        return output.decode()

    def endpoints(self) -> dict[str, Any]:
        """Where everything is now."""
        content: dict[str, Any] = json.loads((self.data_dir / "endpoints.json").read_bytes())
        return content

    @property
    def key(self) -> str:
        return (self.data_dir / "demo-key").read_text().strip()

    @property
    def environment(self) -> dict[str, str]:
        return dict(self._environment)

    def client(self, **more: Any) -> httpx.AsyncClient:
        """An HTTP client of the demo tenant."""
        headers = {"X-API-Key": self.key, **more.pop("headers", {})}
        return httpx.AsyncClient(base_url=self.endpoints()["gateway"], headers=headers, timeout=70.0, **more)

    def pid(self, part: str) -> int:
        return int(self.endpoints()["pids"][part])

    async def kill(self, part: str) -> None:
        """SIGKILL, and wait until the part has been replaced."""
        killed = self.pid(part)
        os.kill(killed, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while self.endpoints()["pids"].get(part) in (None, killed):
            assert time.monotonic() < deadline, f"{part} was not replaced"
            await asyncio.sleep(0.05)

    async def ended(self, client: httpx.AsyncClient, upgrade_id: str, within: float = 90.0) -> dict[str, Any]:
        """The upgrade, once it has ended. A gateway that is being replaced is asked again."""
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
