"""The life of a service process: start, serve, run periodic work, drain, end."""

import asyncio
import contextlib
import errno
import os
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from typing import Any, Protocol

import uvicorn
from starlette.types import ASGIApp

from shared.observability.logs import get_logger
from shared.service.http import bad_request
from shared.service.http_protocol import BadRequestAnswer, limited_http
from shared.service.settings import WRONG_SETTING_EXIT
from shared.service.telemetry import FATAL_EXIT, Telemetry

_job_log = get_logger("periodic")


class Periodic:
    """Component: runs `job` every `every_seconds` until stopped. A run that fails is logged; the next one goes on."""

    def __init__(self, name: str, job: Callable[[], Awaitable[object]], every_seconds: float) -> None:
        self.name = name
        self.job = job
        self._every_seconds = every_seconds
        self._runner: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._runner = asyncio.create_task(self._run(), name=self.name)

    async def stop(self, grace_seconds: float) -> None:
        """Ends the loop at once: a job must be safe to cut short, since a kill does the same."""
        if self._runner:
            self._runner.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._runner

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._every_seconds)
            try:
                await self.job()
            except Exception as error:
                # Only the class: messages of drivers may quote addresses and documents.
                _job_log.warning("periodic_job_failed", job=self.name, error=type(error).__name__)


START_SECONDS = 60.0
FATAL_GRACE_SECONDS = 5.0
_FLUSH_SECONDS = 5.0
_LAST_RESORT_SECONDS = 10.0
_BACKLOG = 2048

_log = get_logger("process")


class Component(Protocol):
    """A part of a process with a life of its own: a database, a producer, a consumer."""

    async def start(self) -> None: ...

    async def stop(self, grace_seconds: float) -> None:
        """Finishes what is under way within `grace_seconds` and lets the rest go."""


def run(main: Coroutine[Any, Any, None]) -> None:
    """Runs `main` to its end, on uvloop where there is one."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)


async def run_service(
    *,
    telemetry: Telemetry,
    http_app: ASGIApp,
    host: str,
    port: int,
    components: Sequence[Component],
    grace_seconds: float,
    bad_request: BadRequestAnswer = bad_request,
) -> None:
    """Starts `components` in order, serves `http_app`, and on SIGTERM or SIGINT drains within `grace_seconds`.

    `bad_request` makes the answers to what is no HTTP request, or one that is too long or too slow.

    Returns after a clean stop. Raises SystemExit(2) when the port is taken, SystemExit(1) when a component does not
    start, SystemExit(70) after `telemetry.fatal`.
    """
    listener = _bind(telemetry.service, host, port)
    ending = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        # Further signals are ignored: a terminal and a supervisor both send theirs.
        loop.add_signal_handler(number, ending.set)
    telemetry.when_fatal(lambda: _wake(loop, ending))
    server = _Server(
        uvicorn.Config(
            http_app,
            http=limited_http(bad_request),
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            # Whose X-Forwarded-For is believed, the gateway decides by itself.
            proxy_headers=False,
            # Longer than clients and load balancers keep theirs (5 and 60 s are common): who closes first does not get
            # a request on a connection that is just going away.
            timeout_keep_alive=75,
            timeout_graceful_shutdown=max(1, int(grace_seconds / 2)),
        )
    )
    started: list[Component] = []
    serving: asyncio.Task[None] | None = None
    failed = False
    try:
        failed = not await _start(components, started, ending)
        if not failed and not ending.is_set():
            serving = asyncio.create_task(server.serve([listener]))
            serving.add_done_callback(lambda _: _stopped_serving(telemetry, ending))
            telemetry.health.mark_started()
            _log.info("serving", host=host, port=listener.getsockname()[1])
            await ending.wait()
    finally:
        unwell = failed or telemetry.fatal_message is not None
        grace = min(grace_seconds, FATAL_GRACE_SECONDS) if unwell else grace_seconds
        _end_for_sure(grace + _FLUSH_SECONDS + _LAST_RESORT_SECONDS, FATAL_EXIT)
        await _drain(telemetry, server, serving, started, grace)
        listener.close()
        await _flush(telemetry)
    if telemetry.fatal_message is not None:
        raise SystemExit(FATAL_EXIT)
    if failed:
        raise SystemExit(1)


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Signals are `run_service`'s."""
        yield


def _bind(service: str, host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    setting = f"{service.upper()}_PORT"
    try:
        listener.bind((host, port))
        # Bound but not listening would let a second process bind too.
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        taken = error.errno == errno.EADDRINUSE
        reason = f"port {port} is taken" if taken else f"cannot listen on {host}:{port} ({error.strerror or error})"
        sys.stderr.write(f"wrong setting: {setting}: {reason}\n")
        raise SystemExit(WRONG_SETTING_EXIT) from None
    listener.setblocking(False)
    return listener


async def _start(components: Sequence[Component], started: list[Component], ending: asyncio.Event) -> bool:
    """Starts one after another until one fails (False) or the process is to end."""
    for component in components:
        if ending.is_set():
            break
        name = type(component).__name__
        starting = asyncio.ensure_future(component.start())
        asked_to_end = asyncio.ensure_future(ending.wait())
        done, _ = await asyncio.wait(
            (starting, asked_to_end), timeout=START_SECONDS, return_when=asyncio.FIRST_COMPLETED
        )
        asked_to_end.cancel()
        started.append(component)
        if starting not in done:
            starting.cancel()
            await asyncio.wait((starting,), timeout=FATAL_GRACE_SECONDS)
            if not ending.is_set():
                _log.error("a part did not start", part=name, reason=f"not started after {START_SECONDS:.0f} s")
                return False
        elif (error := starting.exception()) is not None:
            _log.error("a part did not start", part=name, exc_info=error)
            return False
    return True


async def _drain(
    telemetry: Telemetry,
    server: uvicorn.Server,
    serving: asyncio.Task[None] | None,
    started: Sequence[Component],
    grace_seconds: float,
) -> None:
    loop = asyncio.get_running_loop()
    until = loop.time() + grace_seconds
    telemetry.health.mark_draining()
    _log.info("draining", grace_seconds=grace_seconds)
    if serving is not None:
        # The components still run: requests under way may need them. Through handle_exit, so that event streams end.
        server.handle_exit(signal.SIGTERM, None)
        await asyncio.wait((serving,), timeout=grace_seconds / 2 + 2)
    for component in reversed(started):
        name = type(component).__name__
        left = max(0.5, until - loop.time())
        try:
            await asyncio.wait_for(component.stop(left), left + 1.0)
        except TimeoutError:
            _log.warning("a part did not stop in time", part=name)
        except Exception as error:
            _log.error("a part did not stop cleanly", part=name, exc_info=error)
    _log.info("stopped")


async def _flush(telemetry: Telemetry) -> None:
    flushing = threading.Thread(target=telemetry.flush, daemon=True)
    flushing.start()
    await asyncio.to_thread(flushing.join, _FLUSH_SECONDS)


def _stopped_serving(telemetry: Telemetry, ending: asyncio.Event) -> None:
    if not ending.is_set():
        telemetry.fatal("the HTTP server stopped by itself")
        ending.set()


def _wake(loop: asyncio.AbstractEventLoop, ending: asyncio.Event) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has ended already
        loop.call_soon_threadsafe(ending.set)


def _end_for_sure(seconds: float, exit_code: int) -> None:
    """A part that ignores cancellation, or a thread that never returns, must not keep the process alive."""
    timer = threading.Timer(seconds, os._exit, (exit_code,))
    timer.daemon = True
    timer.start()
