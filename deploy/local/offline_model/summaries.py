"""Condensing a conversation by ranking its sentences: what is wanted, known, limited, decided and already tried."""

from collections import Counter
from dataclasses import asdict
from typing import Any

import orjson

from deploy.local.offline_model.answers import Summary
from deploy.local.offline_model.conversations import (
    Turn,
    is_follow_up,
    last_request,
    main_sentences,
    read_conversation,
)
from deploy.local.offline_model.languages import Language, detect
from deploy.local.offline_model.passages import asks, without_polite_words
from deploy.local.offline_model.prompt_parts import take_apart
from deploy.local.offline_model.text_pieces import (
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

_MOST = 8
_ENTRY_CHARACTERS = 280
_GOAL_CHARACTERS = 400
_ASSISTANT_FACTS = 2


def read_summary(section: str | None) -> Summary | None:
    """The summary in a section's JSON; None without one. Fields that are not what they should be are left out."""
    if not section:
        return None
    try:
        content = orjson.loads(section)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(content, dict):
        return None

    def texts(name: str) -> list[str]:
        value = content.get(name)
        return [item for item in value if isinstance(item, str) and item.strip()] if isinstance(value, list) else []

    goal = content.get("goal")
    return Summary(
        goal if isinstance(goal, str) else "", texts("facts"), texts("constraints"), texts("decisions"), texts("tried")
    )


def summarize(sections: dict[str, str]) -> Summary:
    """The summary of the conversation, with what still holds of the previous one."""
    turns = read_conversation(sections.get("conversation", ""))
    previous = read_summary(sections.get("previous_summary")) or Summary()
    language = detect(" ".join(turn.text for turn in turns if turn.role == "user")) or detect(
        sections.get("conversation", "")
    )
    fresh = Summary(goal=_goal(turns, previous, language))
    weights = _weights(turns, language)
    ranked: list[tuple[float, str]] = []
    for turn in turns:
        if turn.role == "user":
            ranked += _sort_user_message(turn.text, fresh, weights, language)
    ranked += _assistant_facts(turns, weights, language)
    best = sorted(range(len(ranked)), key=lambda index: -ranked[index][0])[:_MOST]
    fresh.facts = [ranked[index][1] for index in sorted(best)]
    return _merged(previous, fresh)


def as_json(summary: Summary) -> dict[str, Any]:
    """The summary with the field names of the structured output."""
    return asdict(summary)


def _goal(turns: list[Turn], previous: Summary, language: Language | None) -> str:
    request, others = last_request(turns, language)
    if request is None:
        if previous.goal or not others:
            return previous.goal
        request = others[0]
    sentences = main_sentences(request, language, limit=2)
    if language is not None:
        sentences = [without_polite_words(sentence, language) for sentence in sentences]
    return clipped(" ".join(as_sentence(sentence) for sentence in sentences), _GOAL_CHARACTERS)


def _sort_user_message(
    text: str, into: Summary, weights: Counter[str], language: Language | None
) -> list[tuple[float, str]]:
    """Puts limits, decisions and attempts where they belong; gives back the facts with their rank."""
    if language is None:
        return [(_rank(s, weights, None), _entry(s)) for s in split_sentences(text) if _is_fact(s, into.goal)]
    facts: list[tuple[float, str]] = []
    if is_follow_up(text, language) and not _says_more(text, language):
        if normalized(text) != normalized(into.goal):
            into.constraints.append(_entry(text))
        return facts
    parts = take_apart(text, language)
    told = [sentence for text in [*parts.context, *parts.task] for sentence in split_sentences(text)]
    for sentence in [*told, *parts.constraints]:
        if language.pattern["tried"].search(sentence):
            into.tried.append(_entry(sentence))
        elif language.pattern["decision"].search(sentence):
            into.decisions.append(_entry(sentence))
        elif sentence in parts.constraints:
            into.constraints.append(_entry(sentence))
        elif _is_fact(sentence, into.goal) and not asks(sentence, language):
            facts.append((_rank(sentence, weights, language), _entry(sentence)))
    return facts


def _says_more(text: str, language: Language) -> bool:
    return bool(language.pattern["tried"].search(text) or language.pattern["decision"].search(text))


def _is_fact(sentence: str, goal: str) -> bool:
    """Statements are facts; questions, code, what only says thanks and the goal itself are not."""
    plain = sentence.strip()
    if plain.endswith(("?", "？")) or plain.startswith("```") or len(words(plain)) < 3:
        return False
    return normalized(plain) not in normalized(goal)


def _assistant_facts(turns: list[Turn], weights: Counter[str], language: Language | None) -> list[tuple[float, str]]:
    """The most central statements of the answers that hold a number, a name or a placeholder."""
    found = []
    for turn in turns:
        if turn.role != "assistant":
            continue
        for sentence in split_sentences("\n".join(list_lines(turn.text))):
            bare = LIST_ITEM.sub("", sentence, count=1) if LIST_ITEM.match(sentence) else sentence
            telling = PLACEHOLDER.search(bare) or any(character.isdigit() for character in bare)
            if telling and _is_fact(bare, "") and len(bare) <= _ENTRY_CHARACTERS:
                found.append((_rank(bare, weights, language) * 0.5, _entry(bare)))
    return sorted(found, key=lambda item: -item[0])[:_ASSISTANT_FACTS]


def _weights(turns: list[Turn], language: Language | None) -> Counter[str]:
    """In how many messages each word stands: what comes up again and again is what the conversation is about."""
    stopwords = language.stopword_set if language else frozenset()
    weights: Counter[str] = Counter()
    for turn in turns:
        weights.update(set(words(turn.text, stopwords)))
    return weights


def _rank(sentence: str, weights: Counter[str], language: Language | None) -> float:
    """Centrality, with a premium on placeholders, numbers, names and the speaker's own circumstances."""
    stopwords = language.stopword_set if language else frozenset()
    content = words(sentence, stopwords)
    rank = sum(weights[word] for word in content) / (len(content) + 3)
    rank += 1.5 if PLACEHOLDER.search(sentence) else 0.0
    rank += 1.0 if any(character.isdigit() for character in sentence) else 0.0
    rank += 0.5 if any(word[:1].isupper() for word in sentence.split()[1:]) else 0.0
    rank += 0.5 if language and language.pattern["statement"].match(sentence) else 0.0
    return rank


def _entry(text: str) -> str:
    return clipped(" ".join(text.split()), _ENTRY_CHARACTERS)


def _merged(previous: Summary, fresh: Summary) -> Summary:
    """What is new, after what still holds; the oldest entries go first where there are too many."""

    def joined(old: list[str], new: list[str]) -> list[str]:
        return distinct([*old, *new])[-_MOST:]

    return Summary(
        goal=fresh.goal or previous.goal,
        facts=joined(previous.facts, fresh.facts),
        constraints=joined(previous.constraints, fresh.constraints),
        decisions=joined(previous.decisions, fresh.decisions),
        tried=joined(previous.tried, fresh.tried),
    )
