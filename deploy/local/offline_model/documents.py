"""Selects sentences of retrieved documents that are relevant to a prompt. Their instructions are never followed."""

import re
from dataclasses import dataclass

from deploy.local.offline_model.embedder import Embedder, Vector
from deploy.local.offline_model.languages import Language
from deploy.local.offline_model.text_pieces import LIST_ITEM, clipped, split_sentences, unwrapped, words

_BLOCK = re.compile(r"(?:\A|\n\n)\[(\d+)\] ([^\n]*)(?:\n|\Z)")
_SENTENCES_PER_DOCUMENT = 60
_SENTENCE_CHARACTERS = 350
_PICKED_PER_DOCUMENT = 2
_PICKED = 5
_UNKNOWN_LANGUAGE_FLOOR = 0.9
_SHARED_WORD = 0.1
# Below this cosine, one shared word is a coincidence.
_WEAK = 0.25
_SHARE_OF_BEST = 0.55
_HEADING_WORDS = 8
_HEADING_LINE = re.compile(r"^(?:#{1,6} [^\n]*|[^\n]* > [^\n]*)\n?", re.MULTILINE)

# Sentences addressed to a model are left out. A placeholder looks like markup but is none.
_ADDRESSES_A_MODEL = re.compile(
    r"ignore|disregard|previous instructions|system prompt|you are (?:now )?an? |as an ai|assistant|jailbreak|"
    r"developer mode|reveal|\bprompt\b|do not tell|override|forget (?:all|everything)|ignorier|anweisungen|"
    r"ignorez|instructions précédentes|ignora|instrucciones|instruções|istruzioni|negeer|bỏ qua|chỉ dẫn|"
    r"</?(?![A-Z_]+_\d+>)\w+>|\[\[",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Document:
    """A retrieved piece of a document and the number by which it is cited."""

    number: int
    title: str
    text: str


@dataclass(frozen=True)
class Finding:
    """A relevant sentence of a document."""

    number: int
    title: str
    sentence: str
    score: float

    def cited(self) -> str:
        """The sentence as a list item with the document's number and title."""
        return f"- [{self.number}] {self.title}: {self.sentence}"


def read_documents(section: str) -> list[Document]:
    """Parses a `documents` section. A line that looks like a heading counts only with the next number in sequence."""
    starts: list[re.Match[str]] = []
    for match in _BLOCK.finditer(section):
        if int(match.group(1)) == len(starts) + 1:
            starts.append(match)
    ends = [match.start() for match in starts[1:]] + [len(section)] if starts else []
    return [
        Document(int(start.group(1)), start.group(2).strip(), section[start.end() : end].strip())
        for start, end in zip(starts, ends, strict=True)
    ]


def relevant_sentences(
    question: str, documents: list[Document], language: Language | None, embedder: Embedder, most: int = _PICKED
) -> list[Finding]:
    """Returns up to `most` passages close to the question in meaning or words, ordered by document number."""
    stopwords = language.stopword_set if language else frozenset()
    floor = language.meaning_floor if language else _UNKNOWN_LANGUAGE_FLOOR
    asked = set(words(question, stopwords))
    question_vector, _ = embedder.embed(question)
    findings: list[Finding] = []
    for document in documents:
        scored = [
            Finding(document.number, document.title, text, score)
            for heading, text in _candidates(document)
            if (score := _score(heading, text, asked, question_vector, stopwords, floor, embedder)) > 0
        ]
        findings += sorted(scored, key=lambda finding: -finding.score)[:_PICKED_PER_DOCUMENT]
    best = sorted(findings, key=lambda finding: -finding.score)[:most]
    # Passages far below the best one usually only share a word with the question.
    best = [finding for finding in best if finding.score >= _SHARE_OF_BEST * best[0].score]
    return sorted(best, key=lambda finding: finding.number)


def _candidates(document: Document) -> list[tuple[str, str]]:
    """Returns quotable texts, each with the heading above it: a short piece as a whole, a longer one by sentences."""
    heading, candidates = "", list[tuple[str, str]]()
    for sentence in split_sentences(unwrapped(_headings_apart(document.text)))[:_SENTENCES_PER_DOCUMENT]:
        if _is_heading(sentence):
            heading = sentence.lstrip("# ").strip()
            continue
        plain = LIST_ITEM.sub("", sentence, count=1) if LIST_ITEM.match(sentence) else sentence
        if plain.startswith("```") or _ADDRESSES_A_MODEL.search(plain):
            continue
        candidates.append((heading, plain.lstrip("#> ").strip()))
    whole = " ".join(text for _, text in candidates)
    if candidates and len(whole) <= _SENTENCE_CHARACTERS and len({above for above, _ in candidates}) == 1:
        return [(candidates[0][0], whole)]
    return [(above, clipped(text, _SENTENCE_CHARACTERS)) for above, text in candidates if len(text.split()) >= 3]


def _headings_apart(text: str) -> str:
    """Adds a line end after each heading, so that a heading is not joined to the sentence below it."""
    return _HEADING_LINE.sub(lambda match: match.group(0) + "\n", text)


def _is_heading(sentence: str) -> bool:
    """Whether a line is a Markdown heading, a path such as `Benefits > Leave`, or a few words without punctuation."""
    if sentence.startswith("#") or " > " in sentence:
        return True
    return (
        len(sentence.split()) <= _HEADING_WORDS
        and sentence[-1] not in '.!?…:;,。！？"”»)|'
        and not (LIST_ITEM.match(sentence) or any(character.isdigit() for character in sentence))
    )


def _score(
    heading: str,
    text: str,
    asked: set[str],
    question: Vector,
    stopwords: frozenset[str],
    floor: float,
    embedder: Embedder,
) -> float:
    """Scores a text by its similarity to the question, also with its heading in front; 0 when it is unrelated."""
    shared = len(asked & set(words(f"{heading} {text}", stopwords)))
    near = embedder.similarity(question, embedder.embed(text)[0])
    if heading:
        near = max(near, 0.95 * embedder.similarity(question, embedder.embed(f"{heading}. {text}")[0]))
    weak = max(floor * 0.7, _WEAK)
    related = near >= floor or (shared > 0 and near >= weak) or (shared >= 2 and near >= weak / 2)
    return near + _SHARED_WORD * min(shared, 3) if related else 0.0
