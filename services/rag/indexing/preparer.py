"""Runs preparation processes, a few at a time and each with a time limit, and reads their answers."""

import asyncio
import contextlib
import os
import sys
from pathlib import Path
from typing import Any

import orjson

from services.rag.indexing.file_types import DocumentType, FileRejected, FileType
from services.rag.indexing.prepared_document import PreparedDocument
from shared.contracts.problems import INVALID_REQUEST, PROBLEMS
from shared.observability.logs import get_logger

_PROJECT = Path(__file__).resolve().parents[3]
_NEEDS_OPENING = {DocumentType.PDF, DocumentType.DOCX}
_MEMORY_ERROR = b"MemoryError"

log = get_logger(__name__)


class Preparer:
    """Checks and prepares uploads in child processes, which have limits of `check_seconds` and `prepare_seconds`."""

    def __init__(self, *, check_seconds: float, prepare_seconds: float, processes: int) -> None:
        self._check_seconds = check_seconds
        self._prepare_seconds = prepare_seconds
        self._slots = asyncio.Semaphore(processes)

    async def check(self, data: bytes, file_type: FileType) -> None:
        """Raises FileRejected for a file that is damaged, protected by a password, or too slow to open."""
        if file_type.type in _NEEDS_OPENING:
            await self._run("check", data, file_type, "", self._check_seconds)

    async def prepare(self, data: bytes, file_type: FileType, title: str) -> PreparedDocument:
        """Returns the document's redacted chunks. Raises FileRejected."""
        answer = await self._run("prepare", data, file_type, title, self._prepare_seconds)
        return await asyncio.to_thread(PreparedDocument.from_json, answer["prepared"])

    async def _run(self, task: str, data: bytes, file_type: FileType, title: str, seconds: float) -> dict[str, Any]:
        request = {
            "task": task,
            "type": file_type.type.value,
            "encoding": file_type.encoding,
            "title": title,
            "seconds": max(1, int(seconds)),
        }
        async with self._slots:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "services.rag.indexing.preparation_process",
                cwd=_PROJECT,
                env=_environment(),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            try:
                async with asyncio.timeout(seconds):
                    output, errors = await process.communicate(orjson.dumps(request) + b"\n" + data)
            except TimeoutError:
                raise FileRejected(INVALID_REQUEST, "The file takes too long to read.") from None
            finally:
                if process.returncode is None:
                    with contextlib.suppress(ProcessLookupError):
                        process.kill()
                    await process.wait()
        return _read_answer(output, errors, process.returncode)


def _read_answer(output: bytes, errors: bytes, exit_code: int | None) -> dict[str, Any]:
    if exit_code != 0 or not output:
        last = errors.strip().rsplit(b"\n", 1)[-1]
        # The class of the error only, since its text may quote the file.
        log.warning("preparation_failed", exit_code=exit_code, error=last.partition(b":")[0].decode(errors="replace"))
        reason = "needs too much memory to read" if _MEMORY_ERROR in last else "cannot be read"
        raise FileRejected(INVALID_REQUEST, f"The file {reason}.")
    answer: dict[str, Any] = orjson.loads(output)
    if "rejected" in answer:
        raise FileRejected(PROBLEMS[answer["rejected"]["code"]], answer["rejected"]["detail"])
    return answer


def _environment() -> dict[str, str]:
    """Only what Python needs: a process that opens hostile files must not have the service's secrets."""
    wanted = ("PATH", "LANG", "LC_ALL", "HOME", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH")
    return {name: os.environ[name] for name in wanted if name in os.environ} | {"PYTHONPATH": str(_PROJECT)}
