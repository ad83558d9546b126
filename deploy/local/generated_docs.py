"""The documents that are generated from the code.

`python -m deploy.local.generated_docs` writes them, `--check` compares.

Generated whole: docs/settings.md, .env.example, docs/asyncapi.json. In docs/events.md and docs/access.md, what stands
between a pair of `<!-- generated: name -->` and `<!-- /generated -->` is.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from deploy.local.event_tables import fields_tables, topics_table
from deploy.local.plans_table import plans_table
from deploy.local.settings_reference import env_example, settings_page
from shared.messaging.asyncapi import asyncapi_document

_PROJECT = Path(__file__).resolve().parents[2]
_BLOCK = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- /generated -->)", re.DOTALL)
_WITH_BLOCKS = ("docs/events.md", "docs/access.md")


def documents() -> dict[str, str]:
    """What each generated file has to hold, by its path in the project."""
    asyncapi = json.dumps(asyncapi_document(), indent=2, ensure_ascii=False) + "\n"
    blocks = {"topics": topics_table(), "fields": fields_tables(), "plans": plans_table()}
    filled = {
        path: _BLOCK.sub(
            lambda found: f"{found[1]}\n{blocks[found[2]]}\n\n{found[3]}", (_PROJECT / path).read_text(encoding="utf-8")
        )
        for path in _WITH_BLOCKS
    }
    return {
        ".env.example": env_example(),
        "docs/settings.md": settings_page(),
        "docs/asyncapi.json": asyncapi,
        **filled,
    }


def not_current() -> list[str]:
    """Paths of generated files that are missing or differ from what the code says."""
    return [path for path, content in documents().items() if _content(_PROJECT / path) != content]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m deploy.local.generated_docs", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, exit 1 when a file is not current")
    if parser.parse_args(arguments).check:
        stale = not_current()
        for path in stale:
            sys.stderr.write(f"{path} is not current: run `make contracts`\n")
        return 1 if stale else 0
    for path, content in documents().items():
        (_PROJECT / path).write_text(content, encoding="utf-8")
    return 0


def _content(file: Path) -> str | None:
    return file.read_text(encoding="utf-8") if file.is_file() else None


if __name__ == "__main__":
    sys.exit(main())
