"""Runs one service of the system as a child process of a component test."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from deploy.local.ports import HOST, free_port
from deploy.local.processes import ServerCommand
from deploy.local.readiness import http_ready
from deploy.local.servers import ServerProcess


def service_process(name: str, environment: Mapping[str, str], data_dir: Path) -> ServerProcess:
    """Returns the service on a free port, not started. Its log is `<name>-<port>.log` in `data_dir`."""
    port = free_port()
    variables = {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "DATA_DIR": str(data_dir),
        f"{name.upper()}_PORT": str(port),
        **environment,
    }
    argv = (sys.executable, "-m", f"services.{name}")
    command = ServerCommand(name, argv, port, f"http://{HOST}:{port}", lambda: http_ready(HOST, port), env=variables)
    return ServerProcess(command, log_file=data_dir / f"{name}-{port}.log")
