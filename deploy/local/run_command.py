"""The command `run`: starts the stack in this process, or with `--detach` in a background process."""

import asyncio
import contextlib
import logging
import os
import subprocess
import sys
from pathlib import Path

from deploy.local.data_folder import ENDPOINTS_FILE, SUPERVISOR_FILE, AlreadyRunning, InstanceLock
from deploy.local.outside_servers import outside_addresses, unreachable_server
from deploy.local.part_logs import FAILED, READY, OperatorOutput, Terminal
from deploy.local.ports import port_is_free
from deploy.local.processes import ServerUnavailable
from deploy.local.server_commands import ensure_cluster_libs
from deploy.local.settings import LocalSettings, stack_secrets
from deploy.local.stack_plan import PROJECT, plan_stack, reachable
from deploy.local.startup_steps import WrongSetting, check_service_settings
from deploy.local.supervisor import Supervisor
from shared.service.settings import WRONG_SETTING_EXIT

_CLUSTER_DIR = PROJECT / ".cluster"
_SAMPLE = (sys.executable, "-m", "deploy.local.sample_prompt")
_END_SECONDS = 120


def run(settings: LocalSettings, *, cluster: bool, sample: bool, report_to: int | None = None) -> int:
    """Runs the stack until a signal stops it and returns the exit code.

    `report_to` is the pipe on which a waiting `run --detach` reads progress.
    """
    data_dir = settings.data_dir
    _restrict_to_owner(data_dir)
    try:
        lock = InstanceLock(data_dir)
    except AlreadyRunning as running:
        return _refuse(_already_running(data_dir, running.pid), report_to, code=1)
    try:
        if settings.gateway_port and not port_is_free(settings.gateway_host, settings.gateway_port):
            why = f"port {settings.gateway_port} on {reachable(settings.gateway_host)} is taken: "
            return _refuse(why + "set GATEWAY_PORT to another one", report_to, code=WRONG_SETTING_EXIT)
        for stale in (ENDPOINTS_FILE, SUPERVISOR_FILE):
            (data_dir / stale).unlink(missing_ok=True)
        # A failed start kills processes that asyncio is still setting up, which it would log as warnings.
        logging.getLogger("asyncio").setLevel(logging.ERROR)
        return asyncio.run(_supervise(settings, cluster=cluster, sample=sample, report_to=report_to))
    except WrongSetting as wrong:
        return _refuse(str(wrong), report_to, code=WRONG_SETTING_EXIT)
    except ServerUnavailable as missing:
        return _refuse(str(missing), report_to, code=1)
    finally:
        lock.release()


def run_detached(settings: LocalSettings, *, cluster: bool, sample: bool) -> int:
    """Starts the stack in a background process and returns when it is ready or has failed. Returns the exit code."""
    _restrict_to_owner(settings.data_dir)
    read_end, write_end = os.pipe()
    command = [sys.executable, "-m", "deploy.local", "run", "--report-to", str(write_end)]
    process = subprocess.Popen(
        [*command, *(["--cluster"] if cluster else [])],
        cwd=PROJECT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=_stderr_file(settings.data_dir),
        pass_fds=(write_end,),
        start_new_session=True,
    )
    os.close(write_end)
    try:
        result = _print_report(read_end)
    except KeyboardInterrupt:
        process.terminate()
        process.wait(timeout=_END_SECONDS)
        raise
    if result != READY:
        code = process.wait(timeout=_END_SECONDS)
        if not result:
            sys.stderr.write(f"the stack ended while it started; {settings.data_dir}/logs/supervisor.err says why\n")
        return code or 1
    if not sample:
        return 0
    return subprocess.run([*_SAMPLE, "--detached"], cwd=PROJECT, check=False).returncode


def _print_report(read_end: int) -> str:
    """Prints the progress of the start. Returns READY, FAILED, or an empty string when the stack just ended."""
    result = ""
    with os.fdopen(read_end, errors="replace") as report:
        for line in report:
            if line.startswith("\0"):
                result = line.strip("\0\n")
            else:
                sys.stdout.write(line)
                sys.stdout.flush()
    return result


def _already_running(data_dir: Path, pid: int) -> str:
    return f"it is already running on {data_dir} (pid {pid}): `make status` shows it, `make stop` ends it"


def _restrict_to_owner(data_dir: Path) -> None:
    """Makes the data folder, and every file that this process and its children create, readable by the owner only."""
    os.umask(0o077)
    data_dir.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(PermissionError):  # a folder of another user, writable for this one
        data_dir.chmod(0o700)


async def _supervise(settings: LocalSettings, *, cluster: bool, sample: bool, report_to: int | None) -> int:
    libs = None
    if cluster and (settings.kafka_bootstrap_servers is None or settings.mongodb_url is None):
        libs = await ensure_cluster_libs(_CLUSTER_DIR)
    plan = plan_stack(settings, stack_secrets(settings), cluster_libs=libs)
    await check_service_settings(plan.environment)
    unreachable = await unreachable_server(outside_addresses(settings))
    if unreachable is not None:
        raise WrongSetting(unreachable)
    output = OperatorOutput(settings.data_dir, Terminal() if report_to is None else None, report_to)
    with contextlib.closing(output):
        return await Supervisor(settings, plan, output).run(_SAMPLE if sample and report_to is None else None)


def _refuse(why: str, report_to: int | None, *, code: int) -> int:
    if report_to is None:
        sys.stderr.write(why + "\n")
    else:
        os.write(report_to, f"{why}\n\0{FAILED}\n".encode())
        os.close(report_to)
    return code


def _stderr_file(data_dir: Path) -> int:
    logs = data_dir / "logs"
    logs.mkdir(parents=True, exist_ok=True, mode=0o700)
    return os.open(logs / "supervisor.err", os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
