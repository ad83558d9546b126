"""Runs a service process: starts its components, serves HTTP, and drains on SIGTERM."""

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

_START_SECONDS = 60.0
_FATAL_GRACE_SECONDS = 5.0
_FLUSH_SECONDS = 5.0
_LAST_RESORT_SECONDS = 10.0
_BACKLOG = 2048

log = get_logger(__name__)


class Component(Protocol):
    """A part of a process that is started and stopped, such as a database, a producer or a consumer."""

    async def start(self) -> None: ...

    async def stop(self, grace_seconds: float) -> None:
        """Finishes pending work within `grace_seconds` and drops the rest."""


class Periodic:
    """Runs `job` every `every_seconds` until stopped; a failed run is logged. Component."""

    def __init__(self, name: str, job: Callable[[], Awaitable[object]], every_seconds: float) -> None:
        self.name = name
        self.job = job
        self._every_seconds = every_seconds
        self._runner: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._runner = asyncio.create_task(self._run(), name=self.name)

    async def stop(self, grace_seconds: float) -> None:
        """Cancels a running job. Jobs must be safe to interrupt, since killing the process does the same."""
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
                # Only the class: the messages of drivers may quote addresses and documents.
                log.warning("periodic_job_failed", job=self.name, error=type(error).__name__)


def run(main: Coroutine[Any, Any, None]) -> None:
    """Runs `main` in a new event loop, on uvloop if it is installed."""
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
    """Starts `components` in order, serves `http_app`, and drains within `grace_seconds` on SIGTERM or SIGINT.

    `bad_request` builds the response to requests that are not valid HTTP, too long or too slow.

    Returns after a clean stop. Raises SystemExit(2) when the port is taken, SystemExit(1) when a component does not
    start, and SystemExit(70) after `telemetry.fatal`.
    """
    listener = _bind(telemetry.service, host, port)
    ending = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        # Further signals have no effect: a terminal and a supervisor may both send one.
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
            # The gateway decides by itself which X-Forwarded-For to trust.
            proxy_headers=False,
            # Longer than the idle time-outs of clients and load balancers (5 and 60 s are common), so that they close
            # first and never send a request on a connection that the server is closing.
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
            log.info("serving", host=host, port=listener.getsockname()[1])
            await ending.wait()
    finally:
        unwell = failed or telemetry.fatal_message is not None
        grace = min(grace_seconds, _FATAL_GRACE_SECONDS) if unwell else grace_seconds
        _exit_after(grace + _FLUSH_SECONDS + _LAST_RESORT_SECONDS)
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
        """Does nothing: `run_service` handles signals."""
        yield


def _bind(service: str, host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    setting = f"{service.upper()}_PORT"
    try:
        listener.bind((host, port))
        # With SO_REUSEADDR a second process can bind the port until this one listens.
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
    """Starts components in order, until shutdown. Returns False when one fails or takes more than 60 s."""
    for component in components:
        if ending.is_set():
            break
        name = type(component).__name__
        starting = asyncio.ensure_future(component.start())
        shutdown = asyncio.ensure_future(ending.wait())
        done, _ = await asyncio.wait((starting, shutdown), timeout=_START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        shutdown.cancel()
        started.append(component)
        if starting not in done:
            starting.cancel()
            await asyncio.wait((starting,), timeout=_FATAL_GRACE_SECONDS)
            if not ending.is_set():
                log.error("a part did not start", part=name, reason=f"not started after {_START_SECONDS:.0f} s")
                return False
        elif (error := starting.exception()) is not None:
            log.error("a part did not start", part=name, exc_info=error)
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
    log.info("draining", grace_seconds=grace_seconds)
    if serving is not None:
        # Before the components, which open requests may need. Through handle_exit, which ends event streams.
        server.handle_exit(signal.SIGTERM, None)
        await asyncio.wait((serving,), timeout=grace_seconds / 2 + 2)
    for component in reversed(started):
        name = type(component).__name__
        left = max(0.5, until - loop.time())
        try:
            await asyncio.wait_for(component.stop(left), left + 1.0)
        except TimeoutError:
            log.warning("a part did not stop in time", part=name)
        except Exception as error:
            log.error("a part did not stop cleanly", part=name, exc_info=error)
    log.info("stopped")


async def _flush(telemetry: Telemetry) -> None:
    flushing = threading.Thread(target=telemetry.flush, daemon=True)
    flushing.start()
    await asyncio.to_thread(flushing.join, _FLUSH_SECONDS)


def _stopped_serving(telemetry: Telemetry, ending: asyncio.Event) -> None:
    if not ending.is_set():
        telemetry.fatal("the HTTP server stopped by itself")
        ending.set()


def _wake(loop: asyncio.AbstractEventLoop, ending: asyncio.Event) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(ending.set)


def _exit_after(seconds: float) -> None:
    """Ends the process after `seconds`, even if a component ignores cancellation or a thread does not return."""
    timer = threading.Timer(seconds, os._exit, (FATAL_EXIT,))
    timer.daemon = True
    timer.start()
