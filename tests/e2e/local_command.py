"""`python -m deploy.local` as an operator types it, on a data folder of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.conftest import REPOSITORY

_START_SECONDS = 100


@dataclass(frozen=True)
class Local:
    """The command line on a data folder of its own."""

    data_dir: Path
    output: str = ""

    def run(self, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        """`python -m deploy.local <arguments>`, to its end."""
        return subprocess.run(
            [sys.executable, "-m", "deploy.local", *arguments],
            cwd=REPOSITORY,
            env=self.environment(variables),
            capture_output=True,
            text=True,
            timeout=_START_SECONDS,
            check=False,
        )

    def environment(self, variables: Mapping[str, str]) -> dict[str, str]:
        outside = {"KAFKA_BOOTSTRAP_SERVERS", "REDIS_URL", "MONGODB_URL", "OPENAI_BASE_URL", "OPENAI_API_KEY"}
        kept = {name: value for name, value in os.environ.items() if name not in outside}
        return {**kept, "DATA_DIR": str(self.data_dir), "GATEWAY_PORT": "0", **variables}

    def endpoints(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.data_dir / "endpoints.json").read_text())
        return content

    def key(self) -> str:
        return (self.data_dir / "demo-key").read_text().strip()

    def status(self) -> dict[str, Any]:
        report: dict[str, Any] = json.loads(self.run("status", "--json").stdout)
        return report

    async def upgrade(self, prompt: str) -> dict[str, Any]:
        """The answer of POST /api/upgrade."""
        async with self.client() as client:
            answer = await client.post("/api/upgrade", json={"userPrompt": prompt}, headers={"Prefer": "wait=60"})
            assert answer.status_code == 200, answer.text
            upgrade: dict[str, Any] = answer.json()
            return upgrade

    def client(self) -> httpx.AsyncClient:
        """An HTTP client of the demo workspace."""
        headers = {"X-API-Key": self.key()}
        return httpx.AsyncClient(base_url=self.endpoints()["gateway"], headers=headers, timeout=70, trust_env=False)


def all_pids(local: Local) -> list[int]:
    report = local.status()
    return [report["supervisor"]["pid"], *(part["pid"] for part in report["parts"].values())]
