"""Reads HTML pages: the visible text, in sections under their headings."""

import re
from concurrent.futures import Future
from threading import Thread

from selectolax.lexbor import LexborHTMLParser, LexborNode

from services.rag.indexing.file_types import FileRejected
from services.rag.indexing.sections import Section, SectionCollector
from shared.contracts.problems import INVALID_REQUEST

_PARSE_SECONDS = 2.0
# A tenth of the usual speed: 20 MB of small elements are parsed in a second.
_PARSE_CHARACTERS_PER_SECOND = 2_000_000

_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_NOT_SHOWN = {
    "head",
    "script",
    "style",
    "noscript",
    "template",
    "svg",
    "math",
    "iframe",
    "object",
    "select",
    "-comment",
}
_BLOCKS = {
    "address", "article", "aside", "blockquote", "body", "br", "dd", "div", "dl", "dt", "fieldset", "figcaption",
    "figure", "footer", "form", "header", "hr", "li", "main", "nav", "ol", "p", "pre", "section", "table", "tbody",
    "tfoot", "thead", "tr", "ul",
}  # fmt: skip
_HIDDEN_STYLE = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden|font-size\s*:\s*0", re.IGNORECASE)


def html_sections(html: str) -> list[Section]:
    """The visible text of a page. Hidden elements may hold injected instructions that no reader sees, and are left out.

    Raises FileRejected for a page whose elements are nested too deeply.
    """
    tree = _parsed(html)
    reader = _PageReader()
    if tree.body is not None:
        reader.read(tree.body)
    return reader.collector.sections()


def _parsed(html: str) -> LexborHTMLParser:
    """The page's tree. Raises FileRejected when parsing takes far longer than is usual for pages of this size.

    The parser's time grows with the square of the nesting, of unclosed formatting and of a tag's attributes, and it has
    no limit of its own. The depth is known only after parsing, since HTML closes many elements implicitly; therefore
    the time is limited. The parser runs without the GIL in a daemon thread, which does not delay the process's exit.
    """
    parsed: Future[LexborHTMLParser] = Future()

    def parse() -> None:
        try:
            parsed.set_result(LexborHTMLParser(html))
        except Exception as error:  # passed on to the waiting thread
            parsed.set_exception(error)

    Thread(target=parse, daemon=True).start()
    try:
        return parsed.result(_PARSE_SECONDS + len(html) / _PARSE_CHARACTERS_PER_SECOND)
    except TimeoutError:
        detail = "The page takes too long to read: its elements are nested too deeply, or its tags hold too much."
        raise FileRejected(INVALID_REQUEST, detail) from None


class _PageReader:
    """Walks the tree with its own stack, since pages may nest deeper than Python recurses."""

    def __init__(self) -> None:
        self.collector = SectionCollector()
        self._line: list[str] = []
        self._preformatted = 0

    def read(self, body: LexborNode) -> None:
        stack: list[tuple[LexborNode, bool]] = [(body, False)]
        while stack:
            node, leaving = stack.pop()
            tag = node.tag or ""
            if leaving:
                self._leave(tag)
            elif tag == "-text":
                self._text(node.text_content or "")
            elif tag in _HEADINGS:
                self._end_line()
                self.collector.heading(_HEADINGS[tag], node.text(deep=True, separator=" "))
            elif tag not in _NOT_SHOWN and not _is_hidden(node):
                self._enter(tag)
                stack.append((node, True))
                stack.extend((child, False) for child in reversed(_children(node)))
        self._end_line()

    def _enter(self, tag: str) -> None:
        if tag in _BLOCKS:
            self._end_line()
        if tag == "li":
            self._line.append("- ")
        if tag == "pre":
            self._preformatted += 1

    def _leave(self, tag: str) -> None:
        if tag in {"td", "th"}:
            self._line.append(" | ")
        if tag in _BLOCKS:
            self._end_line()
        if tag in {"p", "ul", "ol", "table", "pre", "blockquote"}:
            self.collector.text("")
        if tag == "pre":
            self._preformatted -= 1

    def _text(self, text: str) -> None:
        if self._preformatted:
            self._line.append(text)
        elif text:
            self._line.append(re.sub(r"\s+", " ", text))

    def _end_line(self) -> None:
        line = "".join(self._line)
        line = line.rstrip() if self._preformatted else line.strip().removesuffix(" |")
        if line.strip(" -|"):
            self.collector.text(line)
        self._line = []


def _children(node: LexborNode) -> list[LexborNode]:
    children = []
    child = node.child
    while child is not None:
        children.append(child)
        child = child.next
    return children


def _is_hidden(node: LexborNode) -> bool:
    attributes = node.attributes
    if not attributes:
        return False
    if "hidden" in attributes or attributes.get("aria-hidden") == "true":
        return True
    return bool(_HIDDEN_STYLE.search(attributes.get("style") or ""))
