"""Splits a prompt into passages: sentences, and material such as code, logs or pasted text that stays unchanged.

Material is what a request is about, for example the text after "Summarize this:". Its sentences are not classified, and
no character of it may change.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from deploy.local.offline_model.languages import Language
from deploy.local.offline_model.text_pieces import CODE_BLOCK, LIST_ITEM, split_sentences

_GOALS_WITH_A_SOURCE = ("summarize", "translate", "improve", "explain", "analyze")
_GOALS_ON_A_TEXT = ("summarize", "translate", "improve")
_LONG_INLINE = 150
_QUOTE = re.compile(r"\s*[\"'“„«‘]")
_BACKGROUND_SENTENCES = 3
_CLOSING_CHARACTERS = 300
_COLON = re.compile(r":(?=\s)")
_BLANK_LINES = re.compile(r"\n[ \t]*\n")
_LEADING = re.compile(r"[\s,.:;!–—-]+")
_AFTER_GREETING = re.compile(r"\s*[,.!;:\n]|\s+[–—-]\s|\s*[^\w\s'’\"“„«‘`(<\[{/&+-]")
_NAME_AFTER_GREETING = re.compile(r"\s+[^\W\d_][\w'’-]*(?: [^\W\d_][\w'’-]*)?\s*[,!]\s*")
# A greeting without a comma is followed by a question, or by what its author says of themselves.
_SAID_AFTER_GREETING = re.compile(
    r"(?:what|which|who|how|why|when|where|is|are|do|does|did|can|could|would|will|should|i|we|was|wie|wer|wo|wann|warum|"
    r"welche[rsnm]?|wieso|ich|wir|kann|ist|gibt|quel(?:le)?s?|que|quoi|qui|comment|pourquoi|où|quand|combien|est-ce|je|j|"
    r"nous|qué|cuál|quién|cómo|por qué|dónde|cuándo|cuánto|yo|o que|qual|quem|como|por que|onde|quando|quanto|eu|che|"
    r"cosa|quale|chi|come|perché|dove|io|wat|welke|hoe|waarom|wanneer|waar|ik|tôi|mình|em|cho|làm sao|tại sao|thế nào)"
    r"(?![^\W_])",
    re.IGNORECASE,
)

_CODE_WORDS = (
    "def|class|import|from \\w+ import|function|const|let|var|public|private|return|SELECT|FROM|WHERE|JOIN|GROUP BY|"
    "ORDER BY|INSERT|UPDATE|DELETE|CREATE TABLE|Traceback|\\w*Error|\\w*Exception|#include"
)
_CODE_LINE = re.compile(
    rf"^(?: {{2,}}|\t+)\S|[{{}};]\s*$|^\s*(?:{_CODE_WORDS})\b|^\s*[\w.\[\]]+ ?[-+*/]?= ?\S|"
    r"^[\w.]+\([^)]*\)[:;]?\s*$|^\s*(?:\$|>>>|</?\w+[^>]*>|//|#!) ?"
)


@dataclass(frozen=True)
class Passage:
    """A piece of the prompt. A `sentence` is classified later; `material` and `background` are kept whole."""

    text: str
    kind: Literal["sentence", "material", "background"]


def read_passages(prompt: str, language: Language) -> list[Passage]:
    """Returns the passages of the prompt in order."""
    passages: list[Passage] = []
    position = 0
    for block in CODE_BLOCK.finditer(prompt):
        passages += _prose(prompt[position : block.start()], language)
        passages.append(Passage(block.group(0), "material"))
        position = block.end()
    return passages + _prose(prompt[position:], language)


def looks_like_code(material: str) -> bool:
    """Whether at least half of the material's lines look like code."""
    lines = [line for line in material.split("\n") if line.strip()]
    return material.startswith("```") or sum(_CODE_LINE.search(line) is not None for line in lines) * 2 >= len(lines)


def asks(sentence: str, language: Language | None) -> bool:
    """Whether a sentence is a request or a question and not only a statement."""
    if sentence.rstrip().endswith(("?", "？")) or language is None:
        return True
    if language.pattern["polite_question"].match(sentence):
        return True
    if language.pattern["tried"].search(sentence) or language.pattern["decision"].search(sentence):
        return False
    bare = without_polite_words(sentence, language)
    if language.pattern["order"].match(bare):
        return True
    goals = language.table["goals"].values()
    statement = language.pattern["statement"].match(bare)
    return any(pattern.match(bare) or (not statement and pattern.search(bare)) for pattern in goals)


def without_polite_words(text: str, language: Language) -> str:
    """Removes greetings and polite words at the start and turns a request in question form into a statement."""
    bare = LIST_ITEM.sub("", text, count=1) if LIST_ITEM.match(text) else text
    question = False
    while match := language.pattern["polite"].match(bare):
        if language.pattern["greeting"].fullmatch(match.group(0)) and not _greets(bare[match.end() :], language):
            break
        rest = bare[match.end() :]
        rest = _LEADING.sub("", rest, count=1) if _LEADING.match(rest) else rest
        if not rest:
            break
        question = question or language.pattern["polite_question"].match(bare) is not None
        bare = rest
    if question and bare.endswith("?") and "?" not in bare[:-1]:
        bare = bare[:-1].rstrip() + "."
    return bare


def _greets(rest: str, language: Language) -> bool:
    """Whether the words before `rest` greet, and are not part of a name such as "Hello Kitty" or "hi-fi"."""
    if not rest.strip() or _AFTER_GREETING.match(rest):
        return True
    if not rest[0].isspace():
        return False
    named = _NAME_AFTER_GREETING.match(rest)
    return any(_starts_request(text, language) for text in (rest.strip(), rest[named.end() :] if named else ""))


def _starts_request(text: str, language: Language) -> bool:
    names = ("order", "polite", "polite_question", "statement")
    patterns = [_SAID_AFTER_GREETING, *(language.pattern[name] for name in names), *language.table["goals"].values()]
    return any(pattern.match(text) for pattern in patterns)


def _prose(text: str, language: Language) -> list[Passage]:
    start = _start_of_material(text, language)
    if start is None:
        return list(_paragraphs(text, language))
    material, closing = text[start:], ""
    breaks = list(_BLANK_LINES.finditer(material))
    if breaks:
        last = material[breaks[-1].end() :].strip()
        limits = language.pattern["constraint"].search(last)
        if last and len(last) <= _CLOSING_CHARACTERS and (asks(last, language) or limits):
            material, closing = material[: breaks[-1].start()], last
    head = list(_paragraphs(text[:start], language))
    return [*head, Passage(material.strip("\n").rstrip(), "material"), *_paragraphs(closing, language)]


def _start_of_material(text: str, language: Language) -> int | None:
    """Returns the position of the material that follows a request with a colon; None without such a request."""
    for colon in _COLON.finditer(text):
        head = re.split(r"[.!?]\s|\n", text[: colon.start()])[-1].strip()
        rest = text[colon.end() :]
        if not head or not rest.strip() or not asks(head, language):
            continue
        if re.match(r"[ \t]*\n", rest):
            if not LIST_ITEM.match(rest.lstrip("\n")) and len(rest.strip()) > 1:
                return colon.end()
        elif _CODE_LINE.search(rest.lstrip().split("\n", 1)[0]) or _announces_text(head, rest, language):
            return colon.end() + len(rest) - len(rest.lstrip())
    return None


def _announces_text(head: str, rest: str, language: Language) -> bool:
    """Whether the text after `head:` on the same line is material, as in "rewrite this email: Hi Bob, …"."""
    goal = language.first_kind("goals", head)
    if goal in _GOALS_WITH_A_SOURCE and (len(rest) >= _LONG_INLINE or _QUOTE.match(rest)):
        return True
    if language.pattern["constraint"].fullmatch(head.split()[-1]):
        return False
    return goal in _GOALS_ON_A_TEXT or language.pattern["pointing"].search(head) is not None


def _paragraphs(text: str, language: Language) -> Iterator[Passage]:
    for part, is_code in _code_runs(text):
        if is_code:
            yield Passage(part, "material")
            continue
        for paragraph in _BLANK_LINES.split(part):
            sentences = split_sentences(paragraph)
            if _is_background(sentences, language):
                yield Passage(paragraph.strip(), "background")
            else:
                yield from (Passage(sentence, "sentence") for sentence in sentences)


def _is_background(sentences: list[str], language: Language) -> bool:
    if len(sentences) < _BACKGROUND_SENTENCES or any(LIST_ITEM.match(sentence) for sentence in sentences):
        return False
    if any(asks(sentence, language) for sentence in sentences):
        return False
    limits = sum(language.pattern["constraint"].search(sentence) is not None for sentence in sentences)
    return limits * 2 < len(sentences)


def _code_runs(text: str) -> Iterator[tuple[str, bool]]:
    """Splits the text into prose and runs of code, which are at least two lines that look like code."""
    prose: list[str] = []
    run: list[str] = []
    for line in [*text.split("\n"), "end of text"]:
        if _CODE_LINE.search(line) and not LIST_ITEM.match(line):
            run.append(line)
            continue
        if run and not line.strip():
            run.append(line)
            continue
        if sum(bool(item.strip()) for item in run) >= 2:
            yield "\n".join(prose), False
            yield "\n".join(run).rstrip(), True
            prose = []
        else:
            prose += run
        run = []
        prose.append(line)
    yield "\n".join(prose[:-1]), False
