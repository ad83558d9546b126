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
from deploy.local.offline_model.languages import (
    NO_RULES,
    Language,
    UnruledLanguage,
    detect,
    language_of,
    unruled_language,
    words_pattern,
)
from deploy.local.offline_model.passages import asks, without_polite_words
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
_ACKNOWLEDGEMENT_CHARACTERS = 60
_ENUMERATED_CHARACTERS = 2000
_MOST_NAMED = 8
_NAME_WORDS = 6
_ENDS = " .,!?¡¿。！？、👍👌🙏💯🎉✅😊🙂😀😃😄😁🔥👏💪🤝❤\ufe0f\U0001f3fb\U0001f3fc\U0001f3fd\U0001f3fe\U0001f3ff"
_GESTURE = re.compile(rf"[{re.escape(_ENDS)}]*[👍👌🙏💯🎉✅😊🙂😀😃😄😁🔥👏💪🤝❤][{re.escape(_ENDS)}]*|[:;]-?[)D]|\+1")
_ENUMERATION = re.compile(
    r"(?P<first>[^\W_][\w-]*(?: [\w-]+)?)(?P<more>(?:, [^\W_][\w-]*(?: [\w-]+)?){1,7}),? "
    r"(?:and|or|und|oder|y|o|et|ou|e|en|of|và|hoặc) "
    r"(?P<last>[^\W_][\w-]*(?: [\w-]+(?=[.,;!?)]|$))?)"
)
_AFTER_NAME = re.compile(r"\*\*:?\s|:\s|\s[–—-]\s|\s\(|[.;](?:\s|$)")
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
    acknowledged = _acknowledged(prompt, request, turns, sections.get("language", "")) if turns or request else None
    if acknowledged:
        return Rewrite(acknowledged, phrases["offline"], [], 0.6)
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


def _acknowledged(prompt: str, request: str | None, turns: list[Turn], code: str) -> str | None:
    """Returns the prompt for a mere "ok", "thanks" or thumbs-up after an answer; None for any other follow-up.

    The answer is finished: what is left to ask for is the next step. An "ok" to an answer that ends with a question
    agrees to it: there, the answer goes on.
    """
    if len(prompt) > _ACKNOWLEDGEMENT_CHARACTERS:
        return None
    language, unruled = language_of(code), unruled_language(code)
    bare = prompt.strip(_ENDS)
    thanks = language is not None and language.pattern["thanks"].fullmatch(bare) is not None
    if language:
        accepts = thanks or language.pattern["acknowledgement"].fullmatch(bare) is not None
    else:
        accepts = unruled is not None and words_pattern(unruled.acknowledgement).fullmatch(bare) is not None
    if not accepts and not _GESTURE.fullmatch(prompt.strip()):
        return None
    agrees = not thanks and _last_answer(turns).rstrip().endswith(("?", "？"))
    if agrees and language and request:
        return language.change_phrases["go_on"].format(_plainly(request, language))
    known = language or unruled or language_of("en")
    said = [language.change_phrases["thanks"]] if language and thanks else []
    if request and known:
        phrase = known.acknowledged if isinstance(known, UnruledLanguage) else known.change_phrases["acknowledged"]
        said.append(phrase.format(_plainly(request, language) if language else request))
    return " ".join(said) or None


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
                item = "."
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
            named = _with_names(quoted, turns, language) if text == prompt else quoted
            sentences.append(as_sentence(named) + _referenced_item(quoted, turns, language))
    change_sentences = _change_sentences(changes, language)
    moved_to = f"{target} {prompt}"
    kept = _kept(summary, f"{asked} {prompt} {' '.join(sentences)}", [*between, prompt], moved_to, language)
    if prompt and sentences and not target and read_follow_up(prompt, language).verbatim:
        # The earlier answer stands: name its request, and ask only for what is new.
        phrase = _phrase_of_next_step(sentences[-1], asked, language)
        if phrase:
            request = " ".join([asked.rstrip(), *sentences[:-1]])
            step = language.change_phrases[phrase].format(request=request, follow_up=sentences[-1])
            return " ".join([step, *change_sentences, *kept])
    return " ".join([asked, *sentences, *change_sentences, *kept])


def _phrase_of_next_step(step: str, asked: str, language: Language) -> str | None:
    """Returns the name of the phrase that asks for a step; None for an addition to an explanation, asked for anew."""
    if step.rstrip().endswith("?"):
        return "about"
    starts = [language.pattern["order"], language.pattern["polite_question"], *language.table["goals"].values()]
    orders = asks(step, language) and any(pattern.match(step) for pattern in starts)
    if language.pattern["follow_up"].match(step) and orders and language.first_kind("goals", asked) == "explain":
        return None
    return "builds" if orders else "adapt"


def _with_names(follow_up: str, turns: list[Turn], language: Language) -> str:
    """Replaces "those" in "are those the only roles?" by what the last answer has listed, where that is plain."""
    pronoun = language.pattern["those"].search(PLACEHOLDER.sub(lambda match: "_" * len(match.group(0)), follow_up))
    names = _names_of_last_answer(turns, set(words(follow_up, language.stopword_set)))
    if pronoun is None or not names:
        return follow_up
    listed = f"{', '.join(names[:-1])} {language.phrases['both']} {names[-1]}"
    noun = re.match(r" ([^\W\d_]+)", follow_up[pronoun.end() :])
    following = noun.group(1).lower() if noun else ""
    if noun and following not in language.stopword_set:
        said = " ".join(turn.text for turn in turns)
        end = pronoun.end() + noun.end()
        if re.search(rf"\b{re.escape(following[:5])}", said, re.IGNORECASE):
            return f"{follow_up[:end]} ({listed}){follow_up[end:]}"
        if following.endswith(("s", "n")):
            # Probably a noun that the conversation does not have, as in "these days".
            return follow_up
    return follow_up[: pronoun.start()] + listed + follow_up[pronoun.end() :]


def _names_of_last_answer(turns: list[Turn], asked: set[str]) -> list[str]:
    """Returns the short names that the last answer lists or enumerates; empty where there is not exactly one list.

    An enumeration counts after a colon, or where the answer has a word that was `asked` about.
    """
    names = [
        _AFTER_NAME.split(item.lstrip("*"), maxsplit=1)[0].strip(" *.:;,") for item in _items_of_last_answer(turns)
    ]
    if not names:
        answer = _last_answer(turns)[-_ENUMERATED_CHARACTERS:]
        found = list(_ENUMERATION.finditer(answer))
        if len(found) != 1 or not (":" in answer[: found[0].start()] or asked & set(words(answer))):
            return []
        names = [found[0]["first"], *found[0]["more"].split(", ")[1:], found[0]["last"]]
        # The enumeration's first match may hold the words before the first name: "roles are admin".
        names[0] = names[0].split()[-1] if all(len(name.split()) == 1 for name in names[1:]) else names[0]
    plain = 2 <= len(names) <= _MOST_NAMED and all(0 < len(name.split()) <= _NAME_WORDS for name in names)
    return names if plain and not any(PLACEHOLDER.search(name) for name in names) else []


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


def _last_answer(turns: list[Turn]) -> str:
    return next((turn.text for turn in reversed(turns) if turn.role == "assistant"), "")


def _items_of_last_answer(turns: list[Turn]) -> list[str]:
    lines = list_lines(_last_answer(turns))
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
