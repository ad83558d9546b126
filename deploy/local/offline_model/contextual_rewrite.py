"""A follow-up as one short prompt that stands alone: the earlier request with the change that was asked for."""

import re

from deploy.local.offline_model.answers import Rewrite, Summary
from deploy.local.offline_model.conversations import Turn, last_request, main_sentences, read_conversation
from deploy.local.offline_model.documents import Finding, read_documents, relevant_sentences
from deploy.local.offline_model.embedder import Embedder
from deploy.local.offline_model.follow_ups import FollowUp, read_follow_up
from deploy.local.offline_model.languages import Language, detect, language_of
from deploy.local.offline_model.passages import without_polite_words
from deploy.local.offline_model.substitution import substituted
from deploy.local.offline_model.text_pieces import (
    CODE_BLOCK,
    LIST_ITEM,
    PLACEHOLDER,
    as_sentence,
    clipped,
    distinct,
    normalized,
    split_sentences,
)

_REQUEST_CHARACTERS = 800
_CODE_CHARACTERS = 2000
_BETWEEN_CHARACTERS = 300
_MOST_BETWEEN = 5
_MOST_KEPT = 4


def contextual_rewrite(sections: dict[str, str], summary: Summary | None, embedder: Embedder) -> Rewrite:
    """The follow-up merged with what it refers to, in the language of the `language` section."""
    language = language_of(sections.get("language", ""))
    prompt = sections["prompt"].strip()
    turns = read_conversation(sections.get("conversation", ""))
    request, between = _referred(prompt, turns, summary, language)
    phrases = (language or language_of("en")).reasoning  # type: ignore[union-attr]
    if request is None:
        questions = [language.questions["earlier"]] if language else []
        return Rewrite(as_sentence(prompt), f"{phrases['offline']} {phrases['unfilled']}", questions, 0.2)
    findings = relevant_sentences(
        f"{request} {prompt}", read_documents(sections.get("documents", "")), language, embedder
    )[:2]
    if language is None:
        written = _without_rules(request, [*between, prompt])
    else:
        written = _written(request, between, prompt, summary, turns, language)
    if findings:
        written += "\n\n" + _cited(findings, language)
    understood = language is not None and not read_follow_up(prompt, language).verbatim
    return Rewrite(
        upgraded_prompt=written,
        reasoning=f"{phrases['offline']} {phrases['filled']}",
        confidence=0.7 if understood else 0.5,
        cited_documents=sorted({finding.number for finding in findings}),
    )


def _referred(
    prompt: str, turns: list[Turn], summary: Summary | None, language: Language | None
) -> tuple[str | None, list[str]]:
    """The request that the follow-up is about and the follow-ups between the two."""
    earlier = [turn for turn in turns if not (turn.role == "user" and turn.text == prompt)] or turns
    spoken = detect(" ".join(turn.text for turn in earlier if turn.role == "user"))
    request, between = last_request(earlier, spoken)
    if request is None and summary and summary.goal.strip():
        wished = [item for item in summary.constraints if language and _is_change(item, language)]
        request, between = summary.goal.strip(), distinct([*wished, *between])
    if request is None and between:
        request, between = between[0], between[1:]
    if request is None:
        return None, []
    between = [text for text in between if len(text) <= _BETWEEN_CHARACTERS][-_MOST_BETWEEN:]
    if len(request) <= _REQUEST_CHARACTERS:
        return request, between
    blocks = [block.group(0) for block in CODE_BLOCK.finditer(request) if len(block.group(0)) <= _CODE_CHARACTERS]
    asked = clipped(" ".join(main_sentences(request, spoken)), _REQUEST_CHARACTERS)
    return "\n".join([asked, *blocks[:1]]), between


def _written(
    request: str, between: list[str], prompt: str, summary: Summary | None, turns: list[Turn], language: Language
) -> str:
    asked = _plainly(request, language)
    changes = FollowUp()
    sentences: list[str] = []
    for text in [*between, prompt]:
        follow_up = read_follow_up(text, language)
        if follow_up.transfer:
            moved = substituted(asked, follow_up.transfer)
            if moved:
                asked = moved
            else:
                sentences.append(_transfer(follow_up.transfer, language))
        _merge(changes, follow_up)
        if follow_up.verbatim:
            said = " ".join(follow_up.verbatim)
            sentences.append(as_sentence(said) + _meant_item(said, turns, language))
    told = _change_sentences(changes, language)
    alone = _kept(summary, f"{asked} {prompt} {' '.join(sentences)}", language)
    if sentences and sentences[-1].rstrip().endswith("?") and not told and not between:
        # A question about the earlier answer: name the request it is about, and ask.
        about = language.change_phrases["about"].format(request=asked.rstrip(), follow_up=sentences[-1])
        return " ".join([about, *alone])
    return " ".join([asked, *sentences, *told, *alone])


def _plainly(request: str, language: Language) -> str:
    if "\n" in request:
        return request
    sentences = (without_polite_words(sentence, language) for sentence in split_sentences(request))
    return " ".join(as_sentence(sentence) for sentence in sentences)


def _merge(changes: FollowUp, follow_up: FollowUp) -> None:
    opposite = {"shorter": "longer", "longer": "shorter", "formal": "friendly", "friendly": "formal"}
    forms = {"table", "bullets", "steps", "email"}
    for change in follow_up.changes:
        replaced = {opposite.get(change)} | (forms if change in forms else set()) | {change}
        changes.changes = [kept for kept in changes.changes if kept not in replaced] + [change]
    changes.audience = follow_up.audience or changes.audience
    changes.language = follow_up.language or changes.language


def _change_sentences(changes: FollowUp, language: Language) -> list[str]:
    phrases = language.change_phrases
    told = [phrases[change] for change in changes.changes]
    if changes.audience:
        told.append(phrases["audience"].format(changes.audience))
    if changes.language:
        told.append(phrases["language"].format(language.language_names[changes.language]))
    return told


def _transfer(target: str, language: Language) -> str:
    connected = re.match(language.phrases["transfer_words"] + r"\s", target, re.IGNORECASE)
    return language.change_phrases["transfer" if connected else "transfer_topic"].format(target)


def _meant_item(follow_up: str, turns: list[Turn], language: Language) -> str:
    """What "the second point" of the last answer says, as a sentence; nothing when there is no such item."""
    answers = [turn.text for turn in turns if turn.role == "assistant"]
    items = (
        [LIST_ITEM.sub("", line, count=1) for line in answers[-1].splitlines() if LIST_ITEM.match(line)]
        if answers
        else []
    )
    for number, pattern in enumerate(language.ordinal_patterns):
        if pattern.search(follow_up) and number < len(items):
            return " " + language.change_phrases["item"].format(clipped(items[number].strip(), 200))
    return ""


def _kept(summary: Summary | None, said: str, language: Language) -> list[str]:
    """Limits and facts of the conversation that the prompt does not say yet."""
    if summary is None:
        return []
    present = normalized(said)
    used = set(PLACEHOLDER.findall(said))

    def new(items: list[str]) -> list[str]:
        fresh = [
            clipped(item.strip().rstrip("."), 160)
            for item in distinct(items)
            if normalized(item) not in present
            and not used & set(PLACEHOLDER.findall(item))
            and not _is_change(item, language)
        ]
        return fresh[:_MOST_KEPT]

    sentences = []
    limits = new([*summary.constraints, *summary.decisions])
    if limits:
        sentences.append(language.change_phrases["keep"].format("; ".join(limits)))
    facts = new(summary.facts)
    if facts:
        sentences.append(language.change_phrases["mind"].format("; ".join(facts)))
    return sentences


def _is_change(item: str, language: Language) -> bool:
    follow_up = read_follow_up(item, language)
    return bool(follow_up.changes or follow_up.audience or follow_up.language) and not follow_up.verbatim


def _cited(findings: list[Finding], language: Language | None) -> str:
    heading = [language.phrases["documents"]] if language else []
    lines = [f"- [{finding.number}] {finding.title}: {finding.sentence}" for finding in findings]
    return "\n".join([*heading, *lines])


def _without_rules(request: str, follow_ups: list[str]) -> str:
    return "\n".join([request, *distinct(follow_ups)])
