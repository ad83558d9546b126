"""What the supervisor tells its operator: on the terminal, in its own log, and to whoever waits for it to be ready."""

import contextlib
import os
import time
from pathlib import Path

from deploy.local.part_logs import RotatedFile, Terminal

_NAME = "stack"
_LOG_BYTES = 2_000_000
READY, FAILED = "ready", "failed"


class OperatorOutput:
    """`terminal` is None when nobody looks on. `report_to` is the pipe of a waiting starter, closed when it is told."""

    def __init__(self, data_dir: Path, terminal: Terminal | None, report_to: int | None = None) -> None:
        self._terminal, self._report_to = terminal, report_to
        self._file = RotatedFile(data_dir / "logs" / "supervisor.log", _LOG_BYTES, 2)

    def say(self, text: str) -> None:
        """A line (or several) of the supervisor's own."""
        now = time.strftime("%H:%M:%S")
        self._file.write(f"{time.strftime('%Y-%m-%d')} {now} {text}\n".encode())
        for line in text.splitlines():
            if self._terminal is not None:
                self._terminal.line(_NAME, line)
            self._report(line + "\n")

    def part_line(self, part: str, line: str) -> None:
        """A line that a part wrote."""
        if self._terminal is not None:
            self._terminal.line(part, line)

    def ready(self) -> None:
        """The stack is up: whoever waits for it goes on."""
        self._end_report(READY)

    def failed(self, why: str) -> None:
        """The stack could not be started."""
        self.say(why)
        self._end_report(FAILED)

    def close(self) -> None:
        self._file.close()

    def _report(self, text: str) -> None:
        if self._report_to is not None:
            with contextlib.suppress(OSError):
                os.write(self._report_to, text.encode())

    def _end_report(self, result: str) -> None:
        self._report(f"\0{result}\n")
        if self._report_to is not None:
            os.close(self._report_to)
            self._report_to = None
