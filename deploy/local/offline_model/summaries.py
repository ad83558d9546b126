"""Summarizes a conversation: sorts its sentences into goal, facts, constraints, decisions and attempts."""

from collections import Counter

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
from deploy.local.offline_model.prompt_parts import split_prompt
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
    """Parses the summary in a section's JSON; None without one. Fields of a wrong type are left out."""
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
    """Summarizes the `conversation` section and merges the result into the previous summary."""
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
    """Adds constraints, decisions and attempts to the summary; returns the facts with their ranks."""
    if language is None:
        return [(_rank(s, weights, None), _entry(s)) for s in split_sentences(text) if _is_fact(s, into.goal)]
    facts: list[tuple[float, str]] = []
    if is_follow_up(text, language) and not _says_more(text, language):
        if normalized(text) != normalized(into.goal):
            into.constraints.append(_entry(text))
        return facts
    parts = split_prompt(text, language)
    sentences = [sentence for text in [*parts.context, *parts.task] for sentence in split_sentences(text)]
    for sentence in [*sentences, *parts.constraints]:
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
    """Whether the sentence is a statement. Questions, code, short remarks and the goal itself are not."""
    plain = sentence.strip()
    if plain.endswith(("?", "？")) or plain.startswith("```") or len(words(plain)) < 3:
        return False
    return normalized(plain) not in normalized(goal)


def _assistant_facts(turns: list[Turn], weights: Counter[str], language: Language | None) -> list[tuple[float, str]]:
    """Returns the highest-ranked statements of the answers that contain a digit or a placeholder."""
    found = []
    for turn in turns:
        if turn.role != "assistant":
            continue
        for sentence in split_sentences("\n".join(list_lines(turn.text))):
            bare = LIST_ITEM.sub("", sentence, count=1) if LIST_ITEM.match(sentence) else sentence
            specific = PLACEHOLDER.search(bare) or any(character.isdigit() for character in bare)
            if specific and _is_fact(bare, "") and len(bare) <= _ENTRY_CHARACTERS:
                found.append((_rank(bare, weights, language) * 0.5, _entry(bare)))
    return sorted(found, key=lambda item: -item[0])[:_ASSISTANT_FACTS]


def _weights(turns: list[Turn], language: Language | None) -> Counter[str]:
    """Counts in how many messages each word occurs: frequent words mark the subject of the conversation."""
    stopwords = language.stopword_set if language else frozenset()
    weights: Counter[str] = Counter()
    for turn in turns:
        weights.update(set(words(turn.text, stopwords)))
    return weights


def _rank(sentence: str, weights: Counter[str], language: Language | None) -> float:
    """Ranks a sentence by its frequent words, with a bonus for placeholders, digits, names and statements."""
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
    """Appends the new entries to the previous ones and drops the oldest above the limit."""

    def joined(old: list[str], new: list[str]) -> list[str]:
        return distinct([*old, *new])[-_MOST:]

    return Summary(
        goal=fresh.goal or previous.goal,
        facts=joined(previous.facts, fresh.facts),
        constraints=joined(previous.constraints, fresh.constraints),
        decisions=joined(previous.decisions, fresh.decisions),
        tried=joined(previous.tried, fresh.tried),
    )
