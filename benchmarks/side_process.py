"""Runs one side of a benchmark in its own process, controlled by lines of JSON over standard input and output.

`python -m benchmarks.side_process module:Class '{"option": …}'` creates the object and awaits the method that each line
names; the first is `start`. It runs on the same event loop as the services.
"""

import asyncio
import contextlib
import importlib
import json
import os
import sys
import tempfile
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import IO, Any

from benchmarks.backends import PROJECT
from deploy.local.processes import die_with_parent
from shared.service.process import run

_START_SECONDS = 60.0
_CALL_SECONDS = 240.0
_STOP_SECONDS = 15.0
_LINE_LIMIT = 64 * 1024 * 1024
_TAIL_BYTES = 3000


class SideFailed(RuntimeError):
    """A side raised or did not answer in time; the message includes the end of its output."""


class SideProcess:
    """A running side, as seen by the parent process."""

    def __init__(self, process: asyncio.subprocess.Process, output: IO[bytes]) -> None:
        self._process = process
        self._output = output

    async def call(self, method: str, within: float = _CALL_SECONDS, **arguments: Any) -> Any:
        """Calls a method of the side and returns its result, within `within` seconds. Raises SideFailed."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps([method, arguments]).encode() + b"\n")
        try:
            async with asyncio.timeout(within):
                answer = json.loads(await stdout.readline() or b"null")
        except TimeoutError:
            raise SideFailed(f"{method} did not finish within {within:.0f} s:\n{self._tail()}") from None
        if answer is None or "error" in answer:
            raise SideFailed(f"{method}: {answer and answer['error']}\n{self._tail()}")
        return answer["result"]

    async def stop(self) -> None:
        """Stops the process; kills it if it does not exit."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), _STOP_SECONDS)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        self._output.close()

    def _tail(self) -> str:
        self._output.seek(0, os.SEEK_END)
        self._output.seek(max(0, self._output.tell() - _TAIL_BYTES))
        return self._output.read().decode(errors="replace")


@asynccontextmanager
async def side(target: str, **options: Any) -> AsyncIterator[SideProcess]:
    """Runs a side. `target` is `module:Class`, `options` are the constructor's arguments."""
    output = tempfile.TemporaryFile()  # noqa: SIM115 -- closed by SideProcess.stop
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.side_process", target, json.dumps(options)),
        cwd=PROJECT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=output,
        limit=_LINE_LIMIT,
        preexec_fn=die_with_parent(),
    )
    running_side = SideProcess(process, output)
    try:
        await running_side.call("start", within=_START_SECONDS)
        yield running_side
    finally:
        await running_side.stop()


async def _serve(target: str, options: dict[str, Any], channel: IO[bytes]) -> None:
    module, name = target.split(":")
    instance = getattr(importlib.import_module(module), name)(**options)
    while line := await asyncio.to_thread(sys.stdin.readline):
        method, arguments = json.loads(line)
        try:
            answer: dict[str, Any] = {"result": await getattr(instance, method)(**arguments)}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        channel.write(json.dumps(answer).encode() + b"\n")
        channel.flush()
    with contextlib.suppress(AttributeError):
        await instance.close()


def main() -> None:
    # Services log to standard output, which is the channel here, so logs are redirected to standard error.
    channel = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    run(_serve(sys.argv[1], json.loads(sys.argv[2]), channel))


if __name__ == "__main__":
    main()
