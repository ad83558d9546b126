"""Checks whether a model's text is an upgrade of a prompt. Plain rules; each failed one has a name and a hint.

The hint tells the model, in its one repair, what to do better. It never reaches a client.
"""

import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property

from services.upgrader.reading.cues import cues_for, has_cues
from services.upgrader.reading.words import IDEOGRAPH, POLITE, content_stems, in_common, stems, words
from services.upgrader.rewriting.kept_parts import lost_parts
from shared.contracts.token_bounds import longest_contextual_upgrade, longest_full_upgrade
from shared.contracts.upgrade_results import Mode


class Check(StrEnum):
    """What an upgrade must pass. The value is the label of metrics and logs."""

    EMPTY = "empty"
    ECHO = "echo"
    ANSWER = "answer"
    LEAK = "leak"
    REPETITION = "repetition"
    LENGTH = "length"
    STRUCTURE = "structure"
    HEADINGS = "headings"
    LOST_PARTS = "lost_parts"
    OFF_TOPIC = "off_topic"
    OLD_TOPIC = "old_topic"


HINTS = {
    Check.EMPTY: "upgraded_prompt was empty",
    Check.ECHO: "upgraded_prompt repeated the prompt; it must say more precisely what is wanted",
    Check.ANSWER: "upgraded_prompt answered the prompt; write the prompt that should be sent instead, do not answer it",
    Check.LEAK: "upgraded_prompt held text of your instructions or section markers; leave them out",
    Check.REPETITION: "upgraded_prompt repeated itself; say each thing once",
    Check.LENGTH: "upgraded_prompt was far too long or too short for this prompt",
    Check.STRUCTURE: "upgraded_prompt had no structure; put headings such as ROLE, TASK, CONTEXT, CONSTRAINTS, FORMAT",
    Check.HEADINGS: "upgraded_prompt is for a follow-up; write one short prompt without headings",
    Check.LOST_PARTS: "upgraded_prompt lost or changed numbers, names, code, quotations or placeholders of the prompt",
    Check.OFF_TOPIC: "upgraded_prompt was about something other than the prompt",
    Check.OLD_TOPIC: "upgraded_prompt brought in the earlier topic, which the prompt has left",
}


@dataclass(frozen=True)
class Material:
    """What the model was given. All texts are redacted; `instructions` is the rendered template."""

    prompt: str
    mode: Mode
    language: str
    conversation: Sequence[str] = ()
    documents: Sequence[str] = ()
    instructions: str = ""

    @cached_property
    def given_words(self) -> frozenset[str]:
        """Stems of every word that the prompt, the conversation or a document has."""
        return frozenset(stems("\n".join([self.prompt, *self.conversation, *self.documents])))


@dataclass(frozen=True)
class Verdict:
    """`failed` says why the text is no upgrade. `confidence_cap`, 0 to 1, is lower where the checks saw little."""

    failed: tuple[Check, ...] = ()
    confidence_cap: float = 1.0
    lost: tuple[str, ...] = field(default=(), repr=False)

    @property
    def hint(self) -> str:
        """What the model is told before its second try. Names the lost parts, which are the user's own words."""
        hints = [HINTS[check] for check in self.failed]
        if self.lost:
            hints.append("it must contain exactly: " + " ".join(part[:200] for part in self.lost[:10]))
        return "; ".join(hints)


_HEADING_LINE = re.compile(
    r"^\s*(?:#{1,6}\s+\S|\*\*[^*\n]{2,40}\*\*:?\s*$|[^\W\d_][^\n:：.!?。]{1,38}(?:：|:(?:\s|$|\*\*)))"
)
_MARKER = re.compile(
    r"\[\[/?[a-z_]+(?: [0-9a-f]{8})?\]\]|\bupgraded_prompt\b|\bmissing_questions\b|\bcited_documents\b"
)
_ANSWER_OPENING = re.compile(
    r"^\W*(?:sure\b|certainly\b|of course\b|absolutely\b|great question|here(?:'s| is| are)\b|i(?:'m| am) sorry|sorry,"
    r"|as an ai\b|i (?:can(?:'t|not)|cannot)\b|natürlich[!,.]|gerne?[!,.]|hier (?:ist|sind)\b|bien sûr|voici\b"
    r"|claro[!,.]|por supuesto|aquí (?:está|tienes)|certo[!,.]|ecco\b|com certeza|aqui (?:está|estão)|natuurlijk[!,.]"
    r"|hier (?:is|zijn)\b|chắc chắn|dưới đây là|当然|好的[，,。！]|以下是|もちろん|以下は|물론|конечно)",
    re.IGNORECASE,
)
_CODE_BLOCK = re.compile(r"```.*?(?:```|$)", re.DOTALL)
_SENTENCE_END = re.compile(r"(?<=[.!?。！？])\s+|\n+")
_LIST_MARK = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+")

_SHINGLE_WORDS = 8
_SIMPLE_QUESTION_WORDS = 12
_FEWEST_HEADINGS = 2
_LONG_TEXT = 600
_MOST_COMPRESSIBLE = 9.0
_MOST_REPEATS = 4
_SHORTEST_PART_OF_LONG = 0.3
_LONG_PROMPT = 400
_MOST_OLD_WORDS = 2
_ORDER_WITHIN_WORDS = 3
_VERB_AT_END = ("de", "hi", "ja", "ko", "nl", "tr")


def check(upgraded: str, material: Material) -> Verdict:
    """Which checks `upgraded` fails as an upgrade of `material.prompt`, and how far they can vouch for it."""
    if not words(upgraded):
        return Verdict(failed=(Check.EMPTY,), confidence_cap=0.0)
    lost = lost_parts(material.prompt, upgraded, material.conversation, follow_up=material.mode == "contextual")
    found = {
        Check.ECHO: _is_echo(upgraded, material),
        Check.LEAK: _leaks(upgraded, material),
        Check.ANSWER: _is_answer(upgraded, material),
        Check.REPETITION: _repeats_itself(upgraded, material),
        Check.LENGTH: not _is_in_proportion(upgraded, material),
        Check.STRUCTURE: material.mode == "full" and _needs_structure(material) and not has_structure(upgraded),
        Check.HEADINGS: material.mode == "contextual"
        and has_structure(upgraded)
        and not has_structure(material.prompt),
        Check.LOST_PARTS: bool(lost),
        Check.OFF_TOPIC: _is_off_topic(upgraded, material),
        Check.OLD_TOPIC: _has_old_topic(upgraded, material),
    }
    failed = tuple(name for name, is_failed in found.items() if is_failed)
    return Verdict(failed=failed, confidence_cap=_confidence_cap(upgraded, material), lost=tuple(lost))


def _is_echo(upgraded: str, material: Material) -> bool:
    """Whether nothing but punctuation, case, order of lines or politeness was changed."""
    return _essence(upgraded) == _essence(material.prompt)


def _essence(text: str) -> Counter[str]:
    return Counter(word for word in words(text) if word not in POLITE)


def _leaks(upgraded: str, material: Material) -> bool:
    """Whether section markers, names of answer fields, or eight words in a row of our instructions are in it."""
    given = "\n".join([material.prompt, *material.conversation, *material.documents])
    if any(match.group(0) not in given for match in _MARKER.finditer(upgraded)):
        return True
    own = _shingles(material.instructions) - _shingles(given)
    return not own.isdisjoint(_shingles(upgraded))


def _shingles(text: str) -> set[tuple[str, ...]]:
    found = words(text)
    return {tuple(found[i : i + _SHINGLE_WORDS]) for i in range(len(found) - _SHINGLE_WORDS + 1)}


def _is_answer(upgraded: str, material: Material) -> bool:
    """Whether it answers: it opens as an answer does, brings code nobody gave, or neither asks nor orders anything."""
    if _ANSWER_OPENING.search(upgraded) and not _ANSWER_OPENING.search(material.prompt):
        return True
    given = "\n".join([material.prompt, *material.conversation, *material.documents])
    if "```" in upgraded and "```" not in given:
        return True
    if asks_or_orders(upgraded, material.language):
        return False
    # A follow-up may be a mere fragment ("and for Linux"); what it stands for is a question or an order all the same.
    return material.mode == "contextual" or asks_or_orders(material.prompt, material.language)


def asks_or_orders(text: str, language: str) -> bool:
    """Whether a sentence of `text` is a question, or starts with what a task starts with in `language`.

    True for a language without cues, of which the rules cannot tell.
    """
    if not has_cues(language) or has_structure(text) or "?" in text or "？" in text or "؟" in text:
        return True
    cues = cues_for(language)
    orders, questions = cues.tasks | cues.edits, cues.questions
    for sentence in _SENTENCE_END.split(_CODE_BLOCK.sub(" ", text)):
        found = [word for word in words(_LIST_MARK.sub("", sentence)) if word not in POLITE]
        if IDEOGRAPH.search(sentence):
            squeezed = "".join(found)
            if any(phrase[0] in squeezed for phrase in orders | questions if len(phrase) == 1):
                return True
        # An order may follow an adverb.
        positions = set(range(min(len(found), _ORDER_WITHIN_WORDS)))
        if language.partition("-")[0] in _VERB_AT_END:
            positions |= {len(found) - 1, len(found) - 2}
        if any(_phrase_at(orders, found, position) for position in positions) or _phrase_at(questions, found, 0):
            return True
    return False


def _phrase_at(phrases: frozenset[tuple[str, ...]], found: list[str], position: int) -> bool:
    if position < 0:
        return False
    return any(tuple(found[position : position + length]) in phrases for length in range(1, 5))


def _repeats_itself(upgraded: str, material: Material) -> bool:
    sentences = Counter(line for part in _SENTENCE_END.split(upgraded) if len(line := " ".join(words(part))) > 12)
    given = " ".join(words(material.prompt))
    if any(count >= _MOST_REPEATS and given.count(line) < count for line, count in sentences.items()):
        return True
    raw = upgraded.encode()
    return len(raw) > _LONG_TEXT and len(raw) / len(zlib.compress(raw)) > max(
        _MOST_COMPRESSIBLE, _compression(material.prompt) * 1.5
    )


def _compression(text: str) -> float:
    raw = text.encode()
    return len(raw) / len(zlib.compress(raw)) if raw else 1.0


def _is_in_proportion(upgraded: str, material: Material) -> bool:
    prompt, length = len(material.prompt), len(upgraded)
    if prompt > _LONG_PROMPT and length < prompt * _SHORTEST_PART_OF_LONG:
        return False
    if material.mode == "full":
        return length <= longest_full_upgrade(prompt)
    # A follow-up fills in what it refers to, at most one of the earlier messages.
    longest = max((len(text) for text in material.conversation), default=0)
    return length <= longest_contextual_upgrade(prompt, longest)


def _needs_structure(material: Material) -> bool:
    """A question of one fact stays a question; everything else that is to be written in full has headings."""
    return not is_simple_question(material.prompt)


def is_simple_question(text: str) -> bool:
    """Whether `text` is one short question."""
    stripped = text.strip()
    ends = stripped.endswith(("?", "？", "؟"))
    return ends and len(list(stems(stripped))) <= _SIMPLE_QUESTION_WORDS and not re.search(r"[?？؟].", stripped)


def has_structure(text: str) -> bool:
    """Whether at least two different lines of `text` are headings, or begin with a heading and a colon."""
    found: set[str] = set()
    for paragraph in re.split(r"\n\s*\n", _CODE_BLOCK.sub("", text)):
        lines = [line for line in paragraph.splitlines() if line.strip()]
        found |= {
            line.strip().lower()[:30] for line in lines if _HEADING_LINE.match(line) and not _LIST_MARK.match(line)
        }
        if len(lines) > 1 and _is_title(lines[0]):
            found.add(lines[0].strip().lower())
    return len(found) >= _FEWEST_HEADINGS


def _is_title(line: str) -> bool:
    """Whether a paragraph's first line is a short one without a sentence's end, as `TASK` is."""
    bare = line.strip()
    return len(bare) <= 40 and len(words(bare)) <= 4 and bare[-1] not in ".!?,;。！？、," and not _LIST_MARK.match(line)


def _is_off_topic(upgraded: str, material: Material) -> bool:
    """Whether it has hardly a word of the prompt, or, for a follow-up without words of its own, of the conversation."""
    own = content_stems(material.prompt, material.language)
    text = frozenset(stems(upgraded))
    if len(own) >= 2:
        shared = in_common(own, text)
        if shared == 0:
            return material.mode == "full" or not in_common(_conversation_stems(material), text)
        return material.mode == "full" and shared < len(own) * 0.25
    if material.mode == "contextual":
        return not in_common(_conversation_stems(material), text)
    return len(own) == 1 and not in_common(own, text)


def _has_old_topic(upgraded: str, material: Material) -> bool:
    """Whether a prompt that starts something new came back with words that only the old conversation has."""
    if material.mode != "full" or not material.conversation:
        return False
    fresh = frozenset(stems("\n".join([material.prompt, *material.documents, material.instructions])))
    old = _conversation_stems(material) - fresh
    brought = [stem for stem in content_stems(upgraded, material.language) if stem in old]
    return len(brought) > _MOST_OLD_WORDS


def bears_on(document: str, upgraded: str, language: str) -> bool:
    """Whether a rewrite has a word of the document's subject, or a number of two digits and more from it."""
    subject = content_stems(document, language)
    numbers = set(re.findall(r"\d{2,}", document)) & set(re.findall(r"\d{2,}", upgraded))
    return bool(numbers) or in_common(content_stems(upgraded, language), subject) > 0


def _conversation_stems(material: Material) -> frozenset[str]:
    return frozenset(content_stems("\n".join(material.conversation), material.language))


def _confidence_cap(upgraded: str, material: Material) -> float:
    """What the checks can vouch for: less for prompts that say little, and for numbers that nobody gave."""
    cap = 0.95
    own = content_stems(material.prompt, material.language)
    if material.mode == "full":
        if len(own) <= 2:
            cap -= 0.2
        elif len(own) <= 4:
            cap -= 0.1
        covered = in_common(own, frozenset(stems(upgraded)))
        if own and covered < len(own) * 0.6:
            cap -= 0.2
    given = "\n".join([material.prompt, *material.conversation, *material.documents])
    if set(re.findall(r"\d{2,}", upgraded)) - set(re.findall(r"\d{2,}", given)):
        cap -= 0.15
    return round(max(0.1, cap), 2)
