"""The commands for a running stack: `stop`, `status`, `logs` and `env`."""

import asyncio
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from deploy.local.data_folder import ENDPOINTS_FILE, SUPERVISOR_FILE, read_json, running_pid
from deploy.local.part_logs import Terminal
from deploy.local.processes import is_running, resident_mb
from deploy.local.readiness import NotReady, http_ready
from deploy.local.settings import LocalSettings, stack_secrets
from deploy.local.stack_plan import SERVICES

_NOT_RUNNING = "the stack is not running: `make run` starts it"
_NOTHING_RUNS_EXIT = 3
_STOP_LIMIT_SECONDS = 240.0
_POLL_SECONDS = 0.05
_FOLLOW_SECONDS = 0.3


def stop(settings: LocalSettings) -> int:
    """Stops the stack and returns when it has ended: 0, or 1 when it did not end in time."""
    pid = running_pid(settings.data_dir)
    if pid is None:
        print("the stack is not running")
        return 0
    os.kill(pid, signal.SIGTERM)
    print("stopping; services finish their work in progress")
    deadline = time.monotonic() + _STOP_LIMIT_SECONDS
    while running_pid(settings.data_dir) == pid or is_running(pid):
        if time.monotonic() > deadline:
            print(f"it did not end within {_STOP_LIMIT_SECONDS:.0f} s (pid {pid})", file=sys.stderr)
            return 1
        time.sleep(_POLL_SECONDS)
    print("stopped")
    return 0


def status(settings: LocalSettings, *, as_json: bool) -> int:
    """Prints the state of every part. Returns 0 when all are ready, 1 when some are not, 3 when no stack runs."""
    pid = running_pid(settings.data_dir)
    state = read_json(settings.data_dir / SUPERVISOR_FILE) if pid is not None else None
    if pid is None or state is None:
        print(json.dumps({"running": False}) if as_json else _NOT_RUNNING)
        return _NOTHING_RUNS_EXIT
    report = asyncio.run(_report(pid, state))
    endpoints = read_json(settings.data_dir / ENDPOINTS_FILE)
    if as_json:
        print(json.dumps({**report, "endpoints": endpoints}, indent=2))
    else:
        _print_status(report, endpoints)
    return 0 if report["ready"] else 1


async def _report(pid: int, state: dict[str, Any]) -> dict[str, Any]:
    parts = {name: await _part(name, part) for name, part in state["parts"].items()}
    supervisor = {"pid": pid, "memoryMb": round(resident_mb(pid), 1)}
    total = sum(part["memoryMb"] for part in parts.values()) + supervisor["memoryMb"]
    return {
        "running": True,
        "ready": bool(state["ready"]) and all(part["state"] == "ready" for part in parts.values()),
        "cluster": state["cluster"],
        "upSeconds": round(time.time() - state["startedAt"]),
        "memoryMb": round(total, 1),
        "supervisor": supervisor,
        "parts": parts,
    }


async def _part(name: str, part: dict[str, Any]) -> dict[str, Any]:
    state, detail = part["state"], ""
    if state == "ready" and name in SERVICES:
        place = urlsplit(part["address"])
        try:
            await http_ready(place.hostname or "", place.port or 80)
        except NotReady as answer:
            state, detail = "not ready", answer.detail
        except (OSError, TimeoutError):
            state, detail = "not ready", "it does not answer"
    return {
        "state": state,
        "detail": detail,
        "pid": part["pid"],
        "address": part["address"],
        "restarts": part["restarts"],
        "upSeconds": round(time.time() - part["started_at"]),
        "memoryMb": round(resident_mb(part["pid"]), 1) if part["pid"] else 0.0,
    }


def _print_status(report: dict[str, Any], endpoints: dict[str, Any] | None) -> None:
    print(f"{'part':<12}{'state':<13}{'pid':>8}{'restarts':>10}{'up s':>8}{'MB':>8}  address")
    for name, part in report["parts"].items():
        numbers = f"{part['pid'] or '-':>8}{part['restarts']:>10}{part['upSeconds']:>8}{part['memoryMb']:>8.0f}"
        print(f"{name:<12}{part['state']:<13}{numbers}  {part['address']}")
        if part["detail"]:
            print(f"            {part['detail']}")
    supervisor = report["supervisor"]
    print(f"{'supervisor':<25}{supervisor['pid']:>8}{'':>10}{report['upSeconds']:>8}{supervisor['memoryMb']:>8.0f}")
    kind = "Apache Kafka and a MongoDB-wire server" if report["cluster"] else "embedded"
    print(f"total {report['memoryMb']:.0f} MB; {kind}; {'ready' if report['ready'] else 'not ready'}")
    if endpoints:
        print(f"gateway {endpoints['gateway']}, docs {endpoints['gateway']}/docs")


def logs(settings: LocalSettings, part: str | None, *, follow: bool, lines: int) -> int:
    """Prints the last lines of one part's log, or of all; `follow` keeps printing new lines until Ctrl-C."""
    folder = settings.data_dir / "logs"
    files = sorted(file for file in folder.glob("*.log") if part is None or file.stem == part)
    if not files:
        known = ", ".join(sorted(file.stem for file in folder.glob("*.log"))) or "none yet"
        print(f"there is no log of {part or 'any part'} in {folder}; there are: {known}", file=sys.stderr)
        return 1
    terminal = Terminal()
    for file in files:
        for line in _last_lines(file, lines):
            terminal.line(file.stem, line)
    if follow:
        _follow(files, terminal)
    return 0


def _last_lines(file: Path, count: int) -> list[str]:
    with file.open("rb") as handle:
        handle.seek(max(0, handle.seek(0, os.SEEK_END) - count * 2000))
        return handle.read().decode(errors="replace").splitlines()[-count:]


def _follow(files: Sequence[Path], terminal: Terminal) -> None:
    positions = {file: file.stat().st_size for file in files}
    while True:
        for file, position in positions.items():
            size = file.stat().st_size if file.exists() else 0
            start = position if size >= position else 0  # a smaller file is a new one, after rotation
            if size > start:
                with file.open("rb") as handle:
                    handle.seek(start)
                    new = handle.read(size - start)
                complete = new.rfind(b"\n") + 1
                for line in new[:complete].decode(errors="replace").splitlines():
                    terminal.line(file.stem, line)
                positions[file] = start + complete
        time.sleep(_FOLLOW_SECONDS)


def env(settings: LocalSettings, command: Sequence[str]) -> int:
    """Runs `command` with the environment of the running stack; without a command, prints it as shell lines.

    Returns 3 when no stack runs.
    """
    environment = _tool_environment(settings)
    # The environment may name a stack on another machine, and `--help` needs no stack.
    if not environment and settings.kafka_bootstrap_servers is None and "--help" not in command:
        print(_NOT_RUNNING, file=sys.stderr)
        return _NOTHING_RUNS_EXIT
    if command:
        sys.stdout.flush()
        os.execvpe(command[0], list(command), {**os.environ, **environment})  # noqa: S606 - the operator's own command
    for name, value in environment.items():
        print(f"export {name}={shlex.quote(value)}")
    return 0


def _tool_environment(settings: LocalSettings) -> dict[str, str]:
    endpoints = read_json(settings.data_dir / ENDPOINTS_FILE) if running_pid(settings.data_dir) else None
    state = read_json(settings.data_dir / SUPERVISOR_FILE) or {}
    if endpoints is None:
        return {}
    environment = {
        **stack_secrets(settings),
        "DATA_DIR": str((settings.data_dir / "cluster" if state.get("cluster") else settings.data_dir).resolve()),
        "KAFKA_BOOTSTRAP_SERVERS": endpoints["kafka"],
        "REDIS_URL": endpoints["redis"],
        "GATEWAY_URL": endpoints["gateway"],
    }
    if endpoints["mongodb"]:
        environment["MONGODB_URL"] = endpoints["mongodb"]
    if "broker" in endpoints["pids"] and not state.get("cluster"):
        environment["KAFKA_ENABLE_IDEMPOTENCE"] = "false"
    environment |= {f"{name.upper()}_URL": url for name, url in endpoints["services"].items()}
    return environment
