"""Runs the admission scripts over one connection to Redis; concurrent calls travel as one pipeline.

A restarted Redis may have lost its last second of writes. So every script gets the run id of the Redis process as an
argument, which is read over the same connection when it is opened, and compares it with the one in the state.
"""

import asyncio
import contextlib
import hashlib
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import NoScriptError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeout

from shared.contracts.redis_keys import redis_incarnation
from shared.observability.logs import get_logger

_FOLDER = Path(__file__).parent / "scripts"
_PRELUDE = (_FOLDER / "holds.lua").read_text(encoding="utf-8")
_SOCKET_SECONDS = 2.0
_CONNECT_SECONDS = 1.5
_MAX_WAITING = 10_000
_MAX_IN_PIPELINE = 256
_PAUSE_AFTER_FAILURE_SECONDS = 0.1

Argument = str | int | bytes

log = get_logger(__name__)


class AdmissionUnavailable(Exception):
    """Redis does not answer. The script has not run, unless it `may_have_run`. Running it again is safe."""

    def __init__(self, reason: str, *, may_have_run: bool = False) -> None:
        super().__init__(reason)
        self.may_have_run = may_have_run


@dataclass(frozen=True)
class Script:
    """A Lua script of the folder `scripts/`, by its name there; `text` starts with the shared functions."""

    name: str
    text: str
    sha: str

    @staticmethod
    def named(name: str) -> "Script":
        text = _PRELUDE + (_FOLDER / f"{name}.lua").read_text(encoding="utf-8")
        return Script(name, text, hashlib.sha1(text.encode()).hexdigest())  # noqa: S324 -- how Redis names scripts


SCRIPTS = {path.stem: Script.named(path.stem) for path in sorted(_FOLDER.glob("*.lua")) if path.stem != "holds"}


@dataclass
class _Call:
    script: Script
    keys: tuple[str, ...]
    arguments: tuple[Argument, ...]
    answer: asyncio.Future[Any] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    sent: bool = False
    cut_off: bool = False


class AdmissionConnection:
    """Component. A call that was cut off by a lost connection is sent once more, since every script may run twice."""

    def __init__(self, redis_url: str) -> None:
        self._pool = ConnectionPool.from_url(
            redis_url, socket_timeout=_SOCKET_SECONDS, socket_connect_timeout=_CONNECT_SECONDS, health_check_interval=0
        )
        self._connection: AbstractConnection | None = None
        self._run_id = ""
        self._waiting: deque[_Call] = deque()
        self._wanted = asyncio.Event()
        self._sender: asyncio.Task[None] | None = None

    @property
    def run_id(self) -> str:
        """The run id of the Redis process of the last connection; empty before the first one."""
        return self._run_id

    async def start(self) -> None:
        """Tries to connect. While Redis is down, every call fails."""
        with contextlib.suppress(AdmissionUnavailable):
            await self._connected()
        self._sender = asyncio.create_task(self._send_all(), name="admission-connection")

    async def stop(self, grace_seconds: float) -> None:
        if self._sender:
            self._sender.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sender
        self._fail(list(self._waiting))
        self._waiting.clear()
        await self._disconnect()

    async def run(self, script: str, keys: Sequence[str], *arguments: Argument) -> Any:
        """The script's answer: bytes, an int, or a list of them. The script gets the run id as its first argument.

        Raises AdmissionUnavailable.
        """
        if len(self._waiting) >= _MAX_WAITING:
            raise AdmissionUnavailable("too many waiting calls")
        call = _Call(SCRIPTS[script], tuple(keys), arguments)
        self._waiting.append(call)
        self._wanted.set()
        return await call.answer

    async def incarnation_age(self) -> tuple[str, float]:
        """The run id, and for how many seconds this Redis has been known without being emptied."""
        run_id, age_ms = await self.run("incarnation_age", [])
        return run_id.decode(), int(age_ms) / 1000

    async def _send_all(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            while self._waiting:
                calls = [self._waiting.popleft() for _ in range(min(len(self._waiting), _MAX_IN_PIPELINE))]
                calls = [call for call in calls if not call.answer.done()]
                try:
                    await self._send(calls)
                except AdmissionUnavailable as error:
                    log.warning("admission_not_reached", reason=str(error), calls=len(calls))
                    self._fail([*calls, *self._waiting])
                    self._waiting.clear()
                    await asyncio.sleep(_PAUSE_AFTER_FAILURE_SECONDS)
                except asyncio.CancelledError:
                    self._fail(calls)
                    raise

    async def _send(self, calls: list[_Call]) -> None:
        """Sends the calls as one pipeline. Calls cut off by a lost connection are sent once more over a new one."""
        connection = await self._connected()
        commands = [self._command(call) for call in calls]
        try:
            for call in calls:
                call.sent = True
            async with asyncio.timeout(_SOCKET_SECONDS):
                await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
                for call in calls:
                    await self._answer(connection, call)
            return
        except (TimeoutError, RedisTimeout) as error:
            await self._disconnect()
            raise AdmissionUnavailable("no answer in time") from error
        except (RedisError, OSError) as error:
            await self._disconnect()
            reason = type(error).__name__
        left = [call for call in calls if not call.answer.done()]
        if any(call.cut_off for call in left):
            raise AdmissionUnavailable(reason)
        for call in left:
            call.cut_off = True
        await self._send(left)

    async def _answer(self, connection: AbstractConnection, call: _Call) -> None:
        try:
            answer = await connection.read_response(timeout=math.inf)  # _send limits the time of the whole pipeline
        except NoScriptError:
            raise  # the script cache was flushed; connecting again fills it
        except ResponseError as error:
            if not call.answer.done():
                failure = AdmissionUnavailable(f"{call.script.name}: {error}", may_have_run=True)
                call.answer.set_exception(failure)
            return
        if not call.answer.done():
            call.answer.set_result(answer)

    def _command(self, call: _Call) -> tuple[Argument, ...]:
        # The run id belongs to the connection, so the command is built only when that is known.
        keys = call.keys or (redis_incarnation(self._run_id),)
        return ("EVALSHA", call.script.sha, len(keys), *keys, self._run_id, *call.arguments)

    async def _connected(self) -> AbstractConnection:
        if self._connection is not None:
            return self._connection
        connection: AbstractConnection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        started = time.monotonic()
        try:
            async with asyncio.timeout(_CONNECT_SECONDS + _SOCKET_SECONDS):
                await connection.connect()  # type: ignore[no-untyped-call]
                await connection.send_command("INFO", "server")
                self._run_id = _run_id_in(await connection.read_response())
                commands = [("SCRIPT", "LOAD", script.text) for script in SCRIPTS.values()]
                await connection.send_packed_command(connection.pack_commands(commands))
                for _ in commands:
                    await connection.read_response()
                await connection.send_command(
                    "EVALSHA", SCRIPTS["incarnation_age"].sha, 1, redis_incarnation(self._run_id), self._run_id
                )
                await connection.read_response()
        except (RedisError, OSError, TimeoutError) as error:
            with contextlib.suppress(Exception):
                await connection.disconnect(nowait=True)
            raise AdmissionUnavailable(type(error).__name__) from error
        self._connection = connection
        log.info("admission_connected", milliseconds=round((time.monotonic() - started) * 1000))
        return connection

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                await connection.disconnect(nowait=True)

    @staticmethod
    def _fail(calls: Sequence[_Call]) -> None:
        for call in calls:
            if not call.answer.done():
                call.answer.set_exception(AdmissionUnavailable("Redis cannot be reached", may_have_run=call.sent))


def _run_id_in(info: Any) -> str:
    text = info.decode() if isinstance(info, bytes) else str(info)
    for line in text.splitlines():
        if line.startswith("run_id:"):
            return line.removeprefix("run_id:").strip()
    raise ResponseError("no run_id in INFO")
