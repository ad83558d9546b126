"""The files that say where the local stack is: `endpoints.json` for everybody, `supervisor.json` for `status`."""

import json
import os
from pathlib import Path
from typing import Any

ENDPOINTS_FILE = "endpoints.json"
SUPERVISOR_FILE = "supervisor.json"


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replaces the file in one step, readable by its owner only: an address may hold a password."""
    temporary = path.with_name(f".{path.name}.new")
    descriptor = os.open(temporary, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "w") as handle:
        json.dump(content, handle, indent=2)
        handle.write("\n")
    temporary.replace(path)


def read_json(path: Path) -> dict[str, Any] | None:
    """The content of the file, or None when there is none."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
