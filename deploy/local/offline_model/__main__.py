"""Runs the offline model: `python -m deploy.local.offline_model --host 127.0.0.1 --port 8081`."""

import argparse
import asyncio
import errno
import os
import signal
import socket
import sys
from collections.abc import Generator
from contextlib import contextmanager

# One thread does all the work; the tokenizer's own pool would only use memory.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import uvicorn
import uvloop

from deploy.local.offline_model.app import build_app

# Longer than any client keeps an idle connection: otherwise the server may close one that is being reused.
_KEEP_ALIVE_SECONDS = 75
_GRACE_SECONDS = 5


def main() -> None:
    """Serves until SIGTERM or SIGINT. Exits with code 2 and one line when the address cannot be used."""
    parser = argparse.ArgumentParser(prog="offline_model", description="An OpenAI-compatible server with fixed rules.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8081)
    arguments = parser.parse_args()
    try:
        listener = socket.create_server((arguments.host, arguments.port), backlog=2048)
    except OSError as error:
        reason = "is taken" if error.errno == errno.EADDRINUSE else "cannot be used"
        sys.stderr.write(f"offline model: {arguments.host}:{arguments.port} (--host, --port) {reason}\n")
        raise SystemExit(2) from None
    print(f"http://{arguments.host}:{listener.getsockname()[1]}/v1", flush=True)
    uvloop.run(_serve(listener))


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Disables uvicorn's own handling, which ends the process by the signal instead of with exit code 0."""
        yield


async def _serve(listener: socket.socket) -> None:
    config = uvicorn.Config(
        build_app(),
        access_log=False,
        log_level="warning",
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    server = _Server(config)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, setattr, server, "should_exit", True)
    await server.serve(sockets=[listener])


if __name__ == "__main__":
    main()
