"""Finds dead links and paths in the project's Markdown: `python -m tests.contract.docs_links`. Uses no network."""

import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote

PROJECT = Path(__file__).resolve().parents[2]
_SKIPPED = {".venv", ".git", ".data", ".cluster", "node_modules"}
_LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)|^\[[^\]]+\]:\s+(\S+)", re.MULTILINE)
_PATH = re.compile(r"`((?:services|shared|deploy|tests|benchmarks|docs)/[\w./-]+)`")
_FENCED = re.compile(r"```.*?```", re.DOTALL)
_CODE = re.compile(r"```.*?```|~~~.*?~~~|`[^`\n]*`", re.DOTALL)
_HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.MULTILINE)
_ELSEWHERE = ("http://", "https://", "mailto:")


def pages(root: Path = PROJECT) -> list[Path]:
    """Returns all Markdown files of the project."""
    return [page for page in sorted(root.rglob("*.md")) if not _SKIPPED & set(page.relative_to(root).parts)]


def dead_links(root: Path = PROJECT) -> list[str]:
    """Returns each link to a missing file or heading, and each missing path of the project in code, as `page: link`."""
    return [f"{page.relative_to(root)}: {link}" for page in pages(root) for link in _dead_links_of(page, root)]


def _dead_links_of(page: Path, root: Path) -> Iterator[str]:
    content = page.read_text(encoding="utf-8")
    yield from (path for path in _PATH.findall(_FENCED.sub("", content)) if not (root / path).exists())
    text = _CODE.sub(lambda code: "`" * len(code[0]), content)
    for found in _LINK.finditer(text):
        link = found[1] or found[2]
        if link.startswith(_ELSEWHERE):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = page if not path else (root / path[1:] if path.startswith("/") else page.parent / path)
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target.resolve())):
            yield link


@cache
def anchors(page: Path) -> frozenset[str]:
    """Returns the anchors of a page's headings, in the form that code hosts use."""
    text = _FENCED.sub("", page.read_text(encoding="utf-8"))
    found: dict[str, int] = {}
    result = set()
    for heading in _HEADING.findall(text):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        number = found.get(slug, 0)
        found[slug] = number + 1
        result.add(f"{slug}-{number}" if number else slug)
    return frozenset(result)


def main() -> int:
    dead = dead_links()
    for link in dead:
        sys.stderr.write(f"dead link: {link}\n")
    return 1 if dead else 0


if __name__ == "__main__":
    sys.exit(main())
