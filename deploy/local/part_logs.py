"""Log output of the stack: a rotated file for each part, and readable lines on the operator's terminal."""

import contextlib
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

_TAIL_LINES = 25
_LONGEST_LINE_BYTES = 64 * 1024
_COLOURS = (36, 32, 33, 35, 34, 96, 92, 93, 95, 94)
_NAME_WIDTH = 10
_HIDDEN_FIELDS = frozenset({"time", "timestamp", "level", "service", "event", "trace_id", "logger"})
_SUPERVISOR_NAME = "stack"
_SUPERVISOR_LOG_BYTES = 2_000_000
_SUPERVISOR_LOG_FILES = 2
READY, FAILED = "ready", "failed"


class RotatedFile:
    """A log file that is renamed to `<name>.1`, `<name>.2`, … when it exceeds its size; the oldest is deleted."""

    def __init__(self, path: Path, max_bytes: int, keep: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._max_bytes, self._keep = path, max_bytes, keep
        self._file = path.open("ab")

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._file.flush()
        if self._file.tell() >= self._max_bytes:
            self._rotate()

    def close(self) -> None:
        self._file.close()

    def _rotate(self) -> None:
        self._file.close()
        for number in range(self._keep - 1, 0, -1):
            older = self._numbered(number)
            if older.exists():
                older.replace(self._numbered(number + 1))
        self._path.replace(self._numbered(1))
        self._file = self._path.open("ab")

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")


class PartLog:
    """Splits the output of one part, read from a pipe in pieces, into lines for its file and the terminal.

    `tail` holds the last lines for error messages.
    """

    def __init__(self, file: RotatedFile, show: Callable[[str], None] | None) -> None:
        self._file, self._show = file, show
        self._rest = b""
        self.tail: deque[str] = deque(maxlen=_TAIL_LINES)

    def feed(self, data: bytes) -> None:
        """Adds a piece of output. A line longer than 64 KiB is split."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LONGEST_LINE_BYTES:
            lines.append(self._rest)
            self._rest = b""
        for line in lines:
            self._line(line)

    def flush(self) -> None:
        """Writes an unfinished last line, when the output has ended."""
        if self._rest:
            self._line(self._rest)
            self._rest = b""

    def close(self) -> None:
        self.flush()
        self._file.close()

    def _line(self, line: bytes) -> None:
        self._file.write(line + b"\n")
        text = line.decode(errors="replace").rstrip()
        if text:
            self.tail.append(text)
            if self._show is not None:
                self._show(text)


class Terminal:
    """Prints lines with the name of their part in front, JSON log lines in readable form."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._colours = self._stream.isatty()
        self._known: dict[str, int] = {}

    def line(self, part: str, text: str) -> None:
        self.raw(f"{self._prefix(part)} {readable(text)}")

    def raw(self, text: str) -> None:
        try:
            self._stream.write(text + "\n")
            self._stream.flush()
        except (OSError, ValueError):  # the terminal was closed; the log files stay complete
            self._stream = open("/dev/null", "w")  # noqa: SIM115

    def _prefix(self, part: str) -> str:
        name = f"{part:<{_NAME_WIDTH}} |"
        if not self._colours:
            return name
        number = self._known.setdefault(part, len(self._known))
        return f"\x1b[{_COLOURS[number % len(_COLOURS)]}m{name}\x1b[0m"


def readable(line: str) -> str:
    """Returns a JSON log line as `time level event key=value …`, and any other line unchanged."""
    if not line.startswith("{"):
        return line
    try:
        entry = json.loads(line)
    except ValueError:
        return line
    if not isinstance(entry, dict) or "event" not in entry:
        return line
    time = str(entry.get("time") or entry.get("timestamp") or "")[11:23]
    level = str(entry.get("level", "")).upper()
    fields = " ".join(f"{key}={_short(value)}" for key, value in entry.items() if key not in _HIDDEN_FIELDS)
    return " ".join(piece for piece in (time, f"{level:<7}", str(entry["event"]), fields) if piece).rstrip()


def _short(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


class OperatorOutput:
    """The supervisor's messages: to its log file, to `terminal` if there is one, and to a waiting `run --detach`.

    `report_to` is the write end of that command's pipe. It is closed when the stack is ready or has failed.
    """

    def __init__(self, data_dir: Path, terminal: Terminal | None, report_to: int | None = None) -> None:
        self._terminal, self._report_to = terminal, report_to
        self._file = RotatedFile(data_dir / "logs" / "supervisor.log", _SUPERVISOR_LOG_BYTES, _SUPERVISOR_LOG_FILES)

    def say(self, text: str) -> None:
        """Writes one or more lines of the supervisor."""
        now = time.strftime("%H:%M:%S")
        self._file.write(f"{time.strftime('%Y-%m-%d')} {now} {text}\n".encode())
        for line in text.splitlines():
            if self._terminal is not None:
                self._terminal.line(_SUPERVISOR_NAME, line)
            self._report(line + "\n")

    def part_line(self, part: str, line: str) -> None:
        """Shows a line that a part wrote."""
        if self._terminal is not None:
            self._terminal.line(part, line)

    def ready(self) -> None:
        """Reports that the stack is ready."""
        self._end_report(READY)

    def failed(self, why: str) -> None:
        """Reports that the stack could not be started, and why."""
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
