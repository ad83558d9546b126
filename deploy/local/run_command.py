"""`run`: starts the stack in this process, or in one of its own that goes on when this one ends."""

import asyncio
import contextlib
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from deploy.local.data_folder import ENDPOINTS_FILE, SUPERVISOR_FILE, AlreadyRunning, InstanceLock
from deploy.local.outside_servers import nobody_answers, outside_addresses
from deploy.local.part_logs import READY, OperatorOutput, Terminal
from deploy.local.server_commands import ServerUnavailable, ensure_cluster_libs
from deploy.local.servers import die_with_parent
from deploy.local.settings import LocalSettings, stack_secrets
from deploy.local.stack_plan import PROJECT, plan_stack, port_is_free, reachable
from deploy.local.supervisor import Supervisor, create_topics

_CLUSTER_DIR = PROJECT / ".cluster"
_SAMPLE = (sys.executable, "-m", "deploy.local.sample_prompt")
_WRONG_SETTING_EXIT = 2
_CHECK_SETTINGS = (sys.executable, "-m", "deploy.local.check_settings")
_CHECK_SETTINGS_SECONDS = 60.0


class WrongSetting(Exception):
    """A service would refuse its settings. The message is the line that it would end with."""


def run(settings: LocalSettings, *, cluster: bool, sample: bool, report_to: int | None = None) -> int:
    """Runs the stack until a signal ends it. `report_to` is the pipe of a starter that waits for it. The exit code."""
    data_dir = settings.data_dir
    _keep_to_the_owner(data_dir)
    try:
        lock = InstanceLock(data_dir)
    except AlreadyRunning as running:
        return _refuse(already_running(data_dir, running.pid), report_to, code=1)
    try:
        if settings.gateway_port and not port_is_free(settings.gateway_host, settings.gateway_port):
            why = f"port {settings.gateway_port} on {reachable(settings.gateway_host)} is taken: "
            return _refuse(why + "set GATEWAY_PORT to another one", report_to, code=_WRONG_SETTING_EXIT)
        for stale in (ENDPOINTS_FILE, SUPERVISOR_FILE):
            (data_dir / stale).unlink(missing_ok=True)
        # A start that fails ends processes that are just being made, of which asyncio would warn.
        logging.getLogger("asyncio").setLevel(logging.ERROR)
        return asyncio.run(_supervise(settings, cluster=cluster, sample=sample, report_to=report_to))
    except WrongSetting as wrong:
        return _refuse(str(wrong), report_to, code=_WRONG_SETTING_EXIT)
    except ServerUnavailable as missing:
        return _refuse(str(missing), report_to, code=1)
    finally:
        lock.release()


def run_detached(settings: LocalSettings, *, cluster: bool, sample: bool) -> int:
    """Starts the stack in a process of its own and returns when it is ready, or says why it is not."""
    _keep_to_the_owner(settings.data_dir)
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
        result = _passed_on(read_end)
    except KeyboardInterrupt:
        process.terminate()
        process.wait(timeout=120)
        raise
    if result != READY:
        code = process.wait(timeout=120)
        if not result:
            sys.stderr.write(f"the stack ended while it started; {settings.data_dir}/logs/supervisor.err says why\n")
        return code or 1
    if not sample:
        return 0
    return subprocess.run([*_SAMPLE, "--detached"], cwd=PROJECT, check=False).returncode


def _passed_on(read_end: int) -> str:
    """Shows what the stack reports while it starts; gives how that ended, empty when it just ended."""
    result = ""
    with os.fdopen(read_end, errors="replace") as report:
        for line in report:
            if line.startswith("\0"):
                result = line.strip("\0\n")
            else:
                sys.stdout.write(line)
                sys.stdout.flush()
    return result


def already_running(data_dir: Path, pid: int) -> str:
    """One line for whoever starts a second stack."""
    return f"it is already running on {data_dir} (pid {pid}): `make status` shows it, `make stop` ends it"


def _keep_to_the_owner(data_dir: Path) -> None:
    """The data folder, and all that this process and its children write from now on, are nobody else's to read."""
    os.umask(0o077)
    data_dir.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(PermissionError):  # somebody else's folder, lent to us
        data_dir.chmod(0o700)


async def _check_service_settings(environment: Mapping[str, str]) -> None:
    """Raises WrongSetting when a service would not start with this environment."""
    process = await asyncio.create_subprocess_exec(
        *_CHECK_SETTINGS,
        cwd=PROJECT,
        env=dict(environment),
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        preexec_fn=die_with_parent(),
    )
    try:
        _, said = await asyncio.wait_for(process.communicate(), _CHECK_SETTINGS_SECONDS)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        raise
    if process.returncode == _WRONG_SETTING_EXIT:
        raise WrongSetting(said.decode(errors="replace").strip())
    if process.returncode != 0:
        raise ServerUnavailable(f"the settings could not be read:\n{said.decode(errors='replace').strip()}")


async def _supervise(settings: LocalSettings, *, cluster: bool, sample: bool, report_to: int | None) -> int:
    libs = None
    if cluster and (settings.kafka_bootstrap_servers is None or settings.mongodb_url is None):
        libs = await ensure_cluster_libs(_CLUSTER_DIR)
    plan = plan_stack(settings, stack_secrets(settings), cluster_libs=libs, create_topics=create_topics)
    await _check_service_settings(plan.environment)
    missing = await nobody_answers(outside_addresses(settings))
    if missing is not None:
        raise WrongSetting(missing)
    output = OperatorOutput(settings.data_dir, Terminal() if report_to is None else None, report_to)
    with contextlib.closing(output):
        return await Supervisor(settings, plan, output).run(_SAMPLE if sample and report_to is None else None)


def _refuse(why: str, report_to: int | None, *, code: int) -> int:
    if report_to is None:
        sys.stderr.write(why + "\n")
    else:
        os.write(report_to, f"{why}\n\0failed\n".encode())
        os.close(report_to)
    return code


def _stderr_file(data_dir: Path) -> int:
    logs = data_dir / "logs"
    logs.mkdir(parents=True, exist_ok=True, mode=0o700)
    return os.open(logs / "supervisor.err", os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
