"""A child process for the supervisor tests: it serves /health/ready, or misbehaves as requested.

Arguments: port, a file next to which `diary` gets a line for each start and end, and the behaviour: `serve`, `fail`,
`hang` or `ignore-term`.
"""

import http.server
import json
import signal
import sys
import time
from pathlib import Path


class _Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: object) -> None:
        pass


def main() -> None:
    port, diary, behaviour = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    name = diary.stem
    if behaviour == "fail":
        print(f"{name}: the setting THAT_THING is wrong", flush=True)
        sys.exit(2)
    if behaviour == "hang":
        print(f"{name}: waiting for nothing", flush=True)
        time.sleep(60)
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), _Ready) as server:
        _note(diary, f"start {name}")
        print(json.dumps({"level": "info", "event": "serving", "port": port}), flush=True)
        if behaviour == "ignore-term":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        else:
            signal.signal(signal.SIGTERM, lambda *_: _end(diary, name))
        server.serve_forever()


def _end(diary: Path, name: str) -> None:
    _note(diary, f"end {name}")
    sys.exit(0)


def _note(diary: Path, line: str) -> None:
    with (diary.parent / "diary").open("a") as handle:
        handle.write(line + "\n")


if __name__ == "__main__":
    main()
