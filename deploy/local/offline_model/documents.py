"""Picking from retrieved documents what bears on a prompt. Documents are data: nothing in them is followed."""

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

# What speaks to a model and not about the subject is never passed on.
_SPEAKS_TO_A_MODEL = re.compile(
    r"ignore|disregard|previous instructions|system prompt|you are (?:now )?an? |as an ai|assistant|jailbreak|"
    r"developer mode|reveal|\bprompt\b|do not tell|override|forget (?:all|everything)|ignorier|anweisungen|"
    r"ignorez|instructions précédentes|ignora|instrucciones|instruções|istruzioni|negeer|bỏ qua|chỉ dẫn|</?\w+>|\[\[",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Document:
    """One retrieved piece with the number it is cited by."""

    number: int
    title: str
    text: str


@dataclass(frozen=True)
class Finding:
    """A sentence of a document that bears on the prompt."""

    number: int
    title: str
    sentence: str
    score: float


def read_documents(section: str) -> list[Document]:
    """The documents of a `documents` section; a heading inside a text counts only with the number that comes next."""
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
    question: str, documents: list[Document], language: Language | None, embedder: Embedder
) -> list[Finding]:
    """The few sentences nearest to the question in meaning or words, best first; none where none is near."""
    stopwords = language.stopword_set if language else frozenset()
    floor = language.meaning_floor if language else _UNKNOWN_LANGUAGE_FLOOR
    asked = set(words(question, stopwords))
    meant, _ = embedder.embed(question)
    findings: list[Finding] = []
    for document in documents:
        scored = [
            Finding(document.number, document.title, sentence, score)
            for sentence in _candidates(document)
            if (score := _score(sentence, asked, meant, stopwords, floor, embedder)) > 0
        ]
        findings += sorted(scored, key=lambda finding: -finding.score)[:_PICKED_PER_DOCUMENT]
    return sorted(findings, key=lambda finding: -finding.score)[:_PICKED]


def _candidates(document: Document) -> list[str]:
    sentences = split_sentences(unwrapped(document.text))[:_SENTENCES_PER_DOCUMENT]
    plain = (LIST_ITEM.sub("", sentence, count=1) if LIST_ITEM.match(sentence) else sentence for sentence in sentences)
    return [
        clipped(sentence.lstrip("#> ").strip(), _SENTENCE_CHARACTERS)
        for sentence in plain
        if len(sentence.split()) >= 3 and not sentence.startswith("```") and not _SPEAKS_TO_A_MODEL.search(sentence)
    ]


def _score(
    sentence: str, asked: set[str], meant: Vector, stopwords: frozenset[str], floor: float, embedder: Embedder
) -> float:
    shared = len(asked & set(words(sentence, stopwords)))
    near = embedder.similarity(meant, embedder.embed(sentence)[0])
    related = near >= floor or (shared > 0 and near >= floor * 0.7) or shared >= 2
    return near + _SHARED_WORD * min(shared, 3) if related else 0.0
