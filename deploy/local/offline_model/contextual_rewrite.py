"""Rewrites a follow-up as one short, self-contained prompt: the earlier request with the requested change."""

import re

from deploy.local.offline_model.answers import Rewrite, Summary
from deploy.local.offline_model.conversations import (
    FollowUp,
    Turn,
    contradicts,
    last_request,
    main_sentences,
    read_conversation,
    read_follow_up,
    substituted,
)
from deploy.local.offline_model.documents import Finding, read_documents, relevant_sentences
from deploy.local.offline_model.embedder import Embedder
from deploy.local.offline_model.languages import NO_RULES, Language, detect, language_of
from deploy.local.offline_model.passages import without_polite_words
from deploy.local.offline_model.text_pieces import (
    CODE_BLOCK,
    LIST_ITEM,
    PLACEHOLDER,
    as_sentence,
    clipped,
    distinct,
    list_lines,
    normalized,
    split_sentences,
    words,
)

_REQUEST_CHARACTERS = 800
_CODE_CHARACTERS = 2000
_BETWEEN_CHARACTERS = 300
_MOST_BETWEEN = 5
_MOST_KEPT = 4
_OPTION_WORDS = 5
_QUOTED = re.compile(r"\S\s?\{\}.*")
_OPTIONS = frozenset(
    {"one", "option", "version", "variant", "möglichkeit", "variante", "fassung", "opción", "opção", "versão"}
    | {"versión", "opzione", "versione", "optie", "versie", "phương", "án", "cái"}
)


def contextual_rewrite(sections: dict[str, str], summary: Summary | None, embedder: Embedder) -> Rewrite:
    """Merges the follow-up with the request it refers to, in the language of the `language` section."""
    language = language_of(sections.get("language", ""))
    prompt = sections["prompt"].strip()
    turns = read_conversation(sections.get("conversation", ""))
    request, between = _referred(prompt, turns, summary, language)
    phrases = (language or language_of("en")).reasoning  # type: ignore[union-attr]
    if language and turns and language.pattern["thanks"].fullmatch(prompt.strip(" .!?¡¿")):
        return Rewrite(language.change_phrases["thanks"], phrases["offline"], [], 0.6)
    if request is None:
        questions = [language.questions["earlier"]] if language else []
        return Rewrite(as_sentence(prompt), f"{phrases['offline']} {phrases['unfilled']}", questions, 0.2)
    findings = relevant_sentences(
        f"{request} {prompt}", read_documents(sections.get("documents", "")), language, embedder, most=2
    )
    simple = _simple_follow_up(prompt, request, between, turns, language) if language else None
    if simple:
        return Rewrite(simple, f"{phrases['offline']} {phrases['filled']}", [], 0.6)
    if language and between and language.pattern["undo"].fullmatch(prompt.strip(" .!?")):
        # The undone change is dropped, so the change before it is the last one.
        between, prompt = between[:-2], between[-2] if len(between) > 1 else ""
    if language is None:
        written = _without_rules(request, [*between, prompt])
    else:
        written = _written(request, between, prompt, summary, turns, language)
    if findings:
        written += "\n\n" + _cited(findings, language)
    understood = language is not None and not read_follow_up(prompt, language).verbatim
    return Rewrite(
        upgraded_prompt=written,
        reasoning=" ".join([phrases["offline"], phrases["filled"], *([] if language else [NO_RULES])]),
        confidence=0.7 if understood else 0.5,
        cited_documents=sorted({finding.number for finding in findings}),
    )


def _referred(
    prompt: str, turns: list[Turn], summary: Summary | None, language: Language | None
) -> tuple[str | None, list[str]]:
    """Returns the request that the follow-up refers to, and the follow-ups between the two."""
    earlier = [turn for turn in turns if not (turn.role == "user" and turn.text == prompt)] or turns
    spoken = detect(" ".join(turn.text for turn in earlier if turn.role == "user"))
    request, between = last_request(earlier, spoken)
    if request is None and summary and summary.goal.strip():
        wished = [item for item in summary.constraints if language and _is_change(item, language)]
        request = summary.goal.strip()
        between = [text for text in distinct([*wished, *between]) if normalized(text) != normalized(request)]
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


def _simple_follow_up(
    prompt: str, request: str, between: list[str], turns: list[Turn], language: Language
) -> str | None:
    """Returns the whole prompt for a follow-up such as "continue" or "the second one"; None for any other."""
    bare, phrases = prompt.strip(" .!?¡¿"), language.change_phrases
    asked = _plainly(request, language)
    if language.pattern["go_on"].fullmatch(bare):
        return phrases["go_on"].format(" ".join([asked, *between]))
    if not between and language.pattern["undo"].fullmatch(bare):
        return phrases["undo"].format(asked)
    if len(bare.split()) <= _OPTION_WORDS:
        for number, pattern in enumerate(language.ordinal_patterns, start=1):
            besides = set(words(pattern.sub(" ", bare), language.stopword_set)) - _OPTIONS
            if pattern.search(bare) and not besides:
                items = _items_of_last_answer(turns)
                quoted = _QUOTED.search(phrases["item"])
                item = ""
                if quoted and number <= len(items):
                    item = ": " + quoted.group(0).format(clipped(items[number - 1], 200))
                return phrases["option"].format(request=asked, number=number, item=item)
    follow_up = read_follow_up(prompt, language)
    spoken = detect(request)
    other = spoken is not None and spoken.code != language.code
    if other and follow_up.language and not (follow_up.changes or follow_up.audience or follow_up.verbatim):
        return phrases["translated"].format(language=language.language_names[follow_up.language], request=request)
    return None


def _written(
    request: str, between: list[str], prompt: str, summary: Summary | None, turns: list[Turn], language: Language
) -> str:
    asked = _plainly(request, language)
    changes = FollowUp()
    sentences: list[str] = []
    target = ""
    for text in filter(None, [*between, prompt]):
        follow_up = read_follow_up(text, language)
        target = follow_up.transfer or target
        if follow_up.transfer:
            moved = substituted(asked, follow_up.transfer)
            if moved:
                asked = moved
            else:
                sentences.append(_transfer(follow_up.transfer, language))
        _merge(changes, follow_up)
        if follow_up.verbatim:
            quoted = " ".join(follow_up.verbatim)
            sentences.append(as_sentence(quoted) + _referenced_item(quoted, turns, language))
    change_sentences = _change_sentences(changes, language)
    moved_to = f"{target} {prompt}"
    kept = _kept(summary, f"{asked} {prompt} {' '.join(sentences)}", [*between, prompt], moved_to, language)
    if sentences and sentences[-1].rstrip().endswith("?") and not change_sentences and not between:
        # A question about the earlier answer: name the request, then ask.
        about = language.change_phrases["about"].format(request=asked.rstrip(), follow_up=sentences[-1])
        return " ".join([about, *kept])
    return " ".join([asked, *sentences, *change_sentences, *kept])


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
    sentences = [phrases[change] for change in changes.changes]
    if changes.audience:
        sentences.append(phrases["audience"].format(changes.audience))
    if changes.language:
        sentences.append(phrases["language"].format(language.language_names[changes.language]))
    return sentences


def _transfer(target: str, language: Language) -> str:
    connected = re.match(language.phrases["transfer_words"] + r"\s", target, re.IGNORECASE)
    return language.change_phrases["transfer" if connected else "transfer_topic"].format(target)


def _referenced_item(follow_up: str, turns: list[Turn], language: Language) -> str:
    """Quotes the item that "the second point" refers to in the last answer; empty when there is no such item."""
    items = _items_of_last_answer(turns)
    for number, pattern in enumerate(language.ordinal_patterns):
        if pattern.search(follow_up) and number < len(items):
            return " " + language.change_phrases["item"].format(clipped(items[number].strip(), 200))
    return ""


def _items_of_last_answer(turns: list[Turn]) -> list[str]:
    answers = [turn.text for turn in turns if turn.role == "assistant"]
    lines = list_lines(answers[-1]) if answers else []
    return [LIST_ITEM.sub("", line, count=1).strip() for line in lines if LIST_ITEM.match(line)]


def _kept(summary: Summary | None, said: str, follow_ups: list[str], moved_to: str, language: Language) -> list[str]:
    """Returns constraints and facts of the summary that the prompt lacks and that do not contradict `moved_to`."""
    if summary is None:
        return []
    present = normalized(said)
    used = set(PLACEHOLDER.findall(said))
    repeated = {normalized(text) for text in follow_ups}

    def new(items: list[str]) -> list[str]:
        fresh = [
            clipped(item.strip().rstrip(" ."), 160)
            for item in distinct(items)
            if normalized(item) not in present
            and not used & set(PLACEHOLDER.findall(item))
            and normalized(item) not in repeated
            and not item.rstrip().endswith(("?", "？"))
            and not contradicts(item, moved_to)
            and not read_follow_up(item, language).transfer
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
    return "\n".join([*heading, *(finding.cited() for finding in findings)])


def _without_rules(request: str, follow_ups: list[str]) -> str:
    return "\n".join([request, *distinct(follow_ups)])
