"""The scripted model of the tests, in a process of its own, with a latency."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from sys import executable

import httpx

from deploy.local.ports import free_port
from deploy.local.processes import ServerCommand
from deploy.local.readiness import port_answers
from deploy.local.servers import ServerProcess

_PROJECT = Path(__file__).parent.parent


@asynccontextmanager
async def scripted_model(latency_seconds: float) -> AsyncIterator[str]:
    """The base URL of a model that answers every call after `latency_seconds`."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/v1"
    argv = (executable, "-m", "tests.model_server", "--port", str(port))
    command = ServerCommand("model", argv, port, url, lambda: port_answers(port), env={"PYTHONPATH": str(_PROJECT)})
    async with ServerProcess(command):
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as control:
            behaviour = {"latency_seconds": latency_seconds, "keep_requests": False}
            (await control.put("/control/behaviour", json=behaviour)).raise_for_status()
        yield url


def model_environment(url: str) -> dict[str, str]:
    """What a stack is told so that it asks this model."""
    return {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": "scripted"}
