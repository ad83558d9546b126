"""Splits text into sentences, clauses and words without breaking code, quotations, placeholders or numbers."""

import re
from collections.abc import Iterable

PLACEHOLDER = re.compile(r"<[A-Z][A-Z_]*_\d+>")
CODE_BLOCK = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
QUOTATION = re.compile(
    r'"[^"\n]{1,500}"|“[^“”\n]{1,500}”|«[^«»\n]{1,500}»|„[^„“”\n]{1,500}[“”]|`[^`\n]{1,300}`|'
    r"(?<!\w)'[^'\n]{1,500}'(?!\w)"
)
LIST_ITEM = re.compile(r"\s*(?:[-*•–]|\d{1,2}[.)])\s+")
_ITEM_NUMBER = re.compile(r"(?<!\S)(\d{1,2})[.)] +(?=\S)")

_GERMAN_ORDINAL = (
    r"\b\d{1,3}\.(?=\s+(?:Jan|Feb|März|Apr|Mai|Jun|Jul|Aug|Sep|Okt|Nov|Dez|"
    r"Geburtstag|Hochzeitstag|Jahr|Jubil|Klasse|Lebensjahr|Stock|Etage|Runde|Kapitel))"
)
_KEPT_WHOLE = re.compile(
    rf"{_GERMAN_ORDINAL}|{QUOTATION.pattern}|{PLACEHOLDER.pattern}|https?://\S+[^\s.,;:!?)\]]|\([^()\n]{{1,300}}\)|\d[\d.,:]{{0,40}}\d|"
    r"\b(?:e\.g|i\.e|vs|[Aa]pprox|Dr|Dra|Mr|Mrs|Ms|Mme|Mlle|Prof|St|Jr|Sr|Sra|Hr|Nr|Abs|Abb|Bsp|Tel|Vol|"
    r"[Cc]a|[Mm]ax|[Mm]in|[Mm]áx|[Mm]ín|[Aa]prox|núm|pág|bzw|ggf|evtl|inkl|exkl|bspw|sog|z\. ?B|d\. ?h|u\. ?a|s\. ?o|"
    r"p\. ?ej|p\. ?ex|bijv|o\.a|d\.w\.z|cf|incl|excl|Dept|Blvd|Avda|TP|Inc|Ltd|Corp|Co|GmbH|"
    r"\w*[Ss]tr)\.(?=\s)|\b[A-Z]\.|(?<![\w-])[\w-]{1,60}\.(?:py|js|ts|md|txt|csv|json|com|org|net|io|NET)\b"
)
_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"”»“)]*\s+(?!\d)|(?<=[。！？])\s*")
# A full stop before a digit or a lower-case letter does not end a sentence, unless the text uses no capitals.
_SENTENCE_END_BEFORE_CAPITAL = re.compile(r"(?<=[.!?…])[\"”»“)]*\s+(?![\da-zß-öø-ÿđ])|(?<=[。！？])\s*")
_CLAUSE_END = re.compile(r"\s*[,;，；、]\s+|\s+[–—-]\s+|[，；、]")
_WORD = re.compile(r"[^\W_]+")
_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\u0e00-\u0e7f]")
_MASK_START = 0xE000


def split_sentences(text: str) -> list[str]:
    """Returns the sentences in order. Code blocks and list items are one piece each; line breaks end a sentence."""
    pieces: list[str] = []
    position = 0
    for block in CODE_BLOCK.finditer(text):
        pieces += _prose_sentences(text[position : block.start()])
        pieces.append(block.group(0))
        position = block.end()
    return pieces + _prose_sentences(text[position:])


def split_clauses(sentence: str) -> list[str]:
    """Splits a sentence at commas, semicolons and dashes."""
    masked, kept = _mask(sentence)
    return [piece for part in _CLAUSE_END.split(masked) if (piece := _unmask(part, kept).strip())]


def unwrapped(text: str) -> str:
    """Joins lines that a document's layout has broken within a sentence."""
    return re.sub(r"(?<![.!?:;\n])\n(?=[^\W\d_A-Z]|[a-zà-ÿ(])", " ", text)


def list_lines(text: str) -> list[str]:
    """Splits text into lines, and a line with a list such as "1. Stop. 2. Look." into one line per item."""
    lines: list[str] = []
    for line in text.splitlines():
        numbers = [int(match.group(1)) for match in _ITEM_NUMBER.finditer(line)]
        counted = len(numbers) > 1 and numbers == list(range(1, len(numbers) + 1))
        lines += _ITEM_NUMBER.sub(r"\n\g<0>", line).splitlines() if counted else [line]
    return lines


def words(text: str, stopwords: frozenset[str] = frozenset()) -> list[str]:
    """Returns lower-case words without stopwords; scripts without spaces are split into pairs of characters."""
    found: list[str] = []
    for word in _WORD.findall(PLACEHOLDER.sub(" ", text).lower()):
        if _UNSPACED.search(word):
            found += [word[index : index + 2] for index in range(max(1, len(word) - 1))]
        elif word not in stopwords and (len(word) > 1 or word.isdigit()):
            found.append(word)
    return found


def normalized(text: str) -> str:
    """Returns the lower-case words of the text, for finding repetitions."""
    return " ".join(_WORD.findall(text.lower()))


def as_sentence(text: str) -> str:
    """Adds a capital first letter and a final mark; code, multi-line text and names at the start stay unchanged."""
    text = text.strip()
    if not text or text.startswith("```") or "\n" in text:
        return text
    if text[0].islower() and not re.match(r"\S*(?:[A-Z@/_\d]|[.:]\w)", text):
        text = text[0].upper() + text[1:]
    return text if text[-1] in '.!?:…。！？”"»>)' else text + "."


def clipped(text: str, limit: int) -> str:
    """Cuts the text to `limit` characters, between words and never inside a placeholder."""
    if len(text) <= limit:
        return text
    cut = text.rfind(" ", 0, limit)
    cut = cut if cut > limit // 2 else limit
    for placeholder in PLACEHOLDER.finditer(text):
        if placeholder.start() < cut < placeholder.end():
            cut = placeholder.start()
    return text[:cut].rstrip(" ,;:") + " …"


def distinct(texts: Iterable[str]) -> list[str]:
    """Removes texts that differ from an earlier one only in case and punctuation."""
    seen: dict[str, str] = {}
    for text in texts:
        key = normalized(text) or text
        if text.strip():
            seen.setdefault(key, text)
    return list(seen.values())


def _prose_sentences(text: str) -> list[str]:
    sentences: list[str] = []
    for line in text.splitlines():
        if not line.strip():
            continue
        if LIST_ITEM.match(line):
            sentences.append(line.strip())
            continue
        masked, kept = _mask(line)
        first = next((character for character in line if character.isalpha()), "")
        end = _SENTENCE_END if first.islower() else _SENTENCE_END_BEFORE_CAPITAL
        sentences += [piece for part in end.split(masked) if (piece := _unmask(part, kept).strip())]
    return sentences


def _mask(text: str) -> tuple[str, list[str]]:
    kept: list[str] = []

    def hide(match: re.Match[str]) -> str:
        if len(kept) >= 6000:
            return match.group(0)
        kept.append(match.group(0))
        return chr(_MASK_START + len(kept) - 1)

    text = re.sub(r"[\ue000-\uf8ff]", " ", text)
    return _KEPT_WHOLE.sub(hide, text), kept


def _unmask(text: str, kept: list[str]) -> str:
    return re.sub(r"[\ue000-\uf8ff]", lambda match: kept[ord(match.group(0)) - _MASK_START], text)
