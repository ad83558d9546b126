"""Runs the offline model: `python -m deploy.local.offline_model --host 127.0.0.1 --port 8081`."""

import argparse
import errno
import os
import socket
import sys

# One thread does all the work; the tokenizer's own pool would only cost memory.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import uvicorn

from deploy.local.offline_model.app import build_app


def main() -> None:
    """Serves until SIGTERM or SIGINT. Exit code 2 with one line when the address cannot be had."""
    parser = argparse.ArgumentParser(prog="offline_model", description="An OpenAI-compatible model by fixed rules.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8081)
    arguments = parser.parse_args()
    try:
        listener = socket.create_server((arguments.host, arguments.port), backlog=2048)
    except OSError as error:
        reason = "is taken" if error.errno == errno.EADDRINUSE else "cannot be used"
        sys.stderr.write(f"offline model: {arguments.host}:{arguments.port} (--host, --port) {reason}\n")
        raise SystemExit(2) from None
    config = uvicorn.Config(
        build_app(), access_log=False, log_level="warning", lifespan="on", timeout_keep_alive=75, loop="uvloop"
    )
    config.timeout_graceful_shutdown = 5
    print(f"http://{arguments.host}:{listener.getsockname()[1]}/v1", flush=True)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
