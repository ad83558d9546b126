"""Rewrites a first prompt, or one on a new topic, as a structured prompt: role, task, context, constraints, format."""

import re

from deploy.local.offline_model.answers import Rewrite, Summary
from deploy.local.offline_model.conversations import read_follow_up
from deploy.local.offline_model.documents import Finding, read_documents, relevant_sentences
from deploy.local.offline_model.embedder import Embedder
from deploy.local.offline_model.languages import (
    NO_RULES,
    Language,
    UnruledLanguage,
    language_of,
    unruled_language,
)
from deploy.local.offline_model.prompt_parts import PromptParts, split_prompt
from deploy.local.offline_model.summaries import summarize
from deploy.local.offline_model.text_pieces import (
    PLACEHOLDER,
    as_sentence,
    distinct,
    normalized,
    split_sentences,
    words,
)

_PLAIN_HEADINGS = ["ROLE", "TASK", "CONTEXT", "CONSTRAINTS", "FORMAT"]
_MOST_QUESTIONS = 4
_MOST_FACTS = 4
_FOLLOW_UP_WORDS = 6
# Above the meaning floor of a language: short statements on other subjects are often as similar as the floor.
_MARGIN = 0.25
_ENOUGH_WORDS = 2
_LONG_WORD = 6
_GOALS_THAT_CHANGE_THE_TEXT = ("translate", "improve")
_FORM_OF_GOAL = {"summarize": "summary"}
_WRITING_GOALS = ("write", "ideas")
_OF_SET_LENGTH = re.compile(r"\b(?:ha[iï]ku|limerick|sonn?et)", re.IGNORECASE)
_FORMS_WITH_A_PURPOSE = ("email", "letter", "post", "story")


def full_rewrite(sections: dict[str, str], summary: Summary | None, embedder: Embedder) -> Rewrite:
    """Returns the structured prompt in the language of the `language` section, with the user's own words unchanged."""
    language = language_of(sections.get("language", ""))
    prompt = sections["prompt"].strip()
    parts = split_prompt(prompt, language)
    if summary is None and "conversation" in sections:
        summary = summarize({"conversation": sections["conversation"]})
    known = _related(summary, prompt, language, embedder) if summary else Summary()
    findings = relevant_sentences(prompt, read_documents(sections.get("documents", "")), language, embedder)
    unruled = None if language else unruled_language(sections.get("language", ""))
    # A conversation is background, even where nothing of it concerns this prompt.
    has_background = bool(sections.get("conversation", "").strip()) or (summary is not None and summary != Summary())
    written = _written(parts, known, findings, language, has_background=has_background)
    if unruled:
        written = _written_without_rules(prompt, known, findings, unruled, has_background=has_background)
    questions = _questions(parts, sections, language)
    return Rewrite(
        upgraded_prompt=written,
        reasoning=_reasoning(parts, known, findings, language, questions, unruled),
        missing_questions=questions,
        confidence=_confidence(parts, known, findings),
        cited_documents=sorted({finding.number for finding in findings}),
    )


def _written(
    parts: PromptParts, known: Summary, findings: list[Finding], language: Language | None, *, has_background: bool
) -> str:
    headings = language.headings if language else _PLAIN_HEADINGS
    no_context = [language.phrases["no_context"]] if language and not has_background else []
    bodies = [
        _role(parts, language),
        "\n".join(_task(parts, language)),
        "\n".join(_context(parts, known, findings, language) or no_context),
        "\n".join(_constraints(parts, known, language)),
        _format(parts, language),
    ]
    return "\n\n".join(f"{heading}\n{body}" for heading, body in zip(headings, bodies, strict=True) if body)


def _written_without_rules(
    prompt: str, known: Summary, findings: list[Finding], unruled: UnruledLanguage, *, has_background: bool
) -> str:
    """Returns the unchanged prompt under the five headings of a language without rules."""
    context = [unruled.known, *(f"- {fact}" for fact in known.facts)] if known.facts else []
    if findings:
        context += [unruled.documents, *(finding.cited() for finding in findings)]
    constraints = [f"- {limit}" for limit in [*known.constraints, unruled.answer_in, unruled.honest]]
    bodies = [
        unruled.role,
        prompt,
        "\n".join(context) or ("" if has_background else unruled.no_context),
        "\n".join(constraints),
        unruled.format,
    ]
    return "\n\n".join(f"{heading}\n{body}" for heading, body in zip(unruled.headings, bodies, strict=True) if body)


def _role(parts: PromptParts, language: Language | None) -> str:
    if language is None:
        return ""
    return language.roles.get(parts.domain or "general", language.roles["general"])


def _task(parts: PromptParts, language: Language | None) -> list[str]:
    if language is None:
        return parts.task
    lines = [as_sentence(sentence) for sentence in parts.task]
    announced = next((index for index, line in enumerate(lines, start=1) if line.endswith(":")), len(lines))
    return [*lines[:announced], *parts.blocks, *lines[announced:]]


def _context(parts: PromptParts, known: Summary, findings: list[Finding], language: Language | None) -> list[str]:
    lines = [as_sentence(sentence) for sentence in parts.context]
    if language and parts.audience:
        lines.append(language.phrases["audience"].format(parts.audience))
    facts = [as_sentence(fact) for fact in known.facts]
    if language:
        facts += [language.phrases["decided"].format(as_sentence(item)) for item in known.decisions]
        facts += [language.phrases["tried"].format(as_sentence(item)) for item in known.tried]
    if facts:
        lines += [language.phrases["known"]] if language else []
        lines += [f"- {fact}" for fact in facts]
    if findings:
        lines += [language.phrases["documents"]] if language else []
        lines += [finding.cited() for finding in findings]
    return lines


def _constraints(parts: PromptParts, known: Summary, language: Language | None) -> list[str]:
    lines = [as_sentence(line) for item in [*parts.constraints, *known.constraints] for line in _lines(item)]
    if language is None:
        return [f"- {item}" for item in lines]
    said = normalized(" ".join(lines))
    for label, clue in (("length", parts.length), ("tone", parts.tone)):
        if clue and normalized(clue) not in said:
            lines.append(language.phrases[label].format(clue))
    answer_language = parts.answer_language or language.code
    if parts.answer_language is None or not any(language.pattern["in_language"].search(item) for item in lines):
        lines.append(language.phrases["answer_in"].format(language.language_names[answer_language]))
    given = (parts.quotes or parts.blocks) and parts.goal not in _GOALS_THAT_CHANGE_THE_TEXT
    if given or PLACEHOLDER.search(" ".join([*parts.task, *parts.context])):
        lines.append(language.phrases["verbatim"])
    if parts.goal != "talk":
        lines.append(language.phrases["honest"])
    return [item if item.startswith(("- ", "* ")) else f"- {item}" for item in distinct(lines)]


def _lines(constraint: str) -> list[str]:
    """Returns the items of a list under a heading such as `Requirements:`, or else the constraint itself."""
    heading, *items = constraint.split("\n")
    return items if items and heading.rstrip().endswith(":") and len(heading.split()) <= 3 else [heading, *items]


def _format(parts: PromptParts, language: Language | None) -> str:
    if language is None:
        return ""
    phrases = language.format_phrases
    if parts.format in phrases:
        return phrases[parts.format or ""]
    return phrases.get(_FORM_OF_GOAL.get(parts.goal or "", parts.goal or ""), phrases["general"])


def _is_orphaned_follow_up(prompt: str, language: Language) -> bool:
    """Whether a prompt without a conversation reads like a follow-up: "shorter", "and for Linux?"."""
    if len(prompt.split()) > _FOLLOW_UP_WORDS:
        return False
    bare = prompt.strip(" .!?¡¿")
    if any(language.pattern[name].fullmatch(bare) for name in ("go_on", "undo")):
        return True
    if (
        any(pattern.search(bare) for pattern in language.ordinal_patterns)
        and not words(bare, language.stopword_set)[2:]
    ):
        return language.first_kind("goals", bare) is None
    follow_up = read_follow_up(prompt, language)
    changes = follow_up.changes or follow_up.audience or follow_up.language or follow_up.transfer
    return bool(changes) and not follow_up.verbatim


def _questions(parts: PromptParts, sections: dict[str, str], language: Language | None) -> list[str]:
    prompt = sections["prompt"].strip()
    if language is None or parts.goal == "talk":
        return []
    if "conversation" not in sections and _is_orphaned_follow_up(prompt, language):
        return [language.questions["earlier"]]
    return [language.questions[kind] for kind in _missing(parts, prompt, language)[:_MOST_QUESTIONS]]


def _missing(parts: PromptParts, prompt: str, language: Language) -> list[str]:
    """Returns the kinds of information that the prompt lacks, the most important first."""
    code = parts.domain in ("code", "tech")
    missing: list[str] = []
    brings_text = _brings_text(parts, prompt)
    if parts.goal in ("translate", "summarize", "improve") and not brings_text:
        missing.append("source_code" if code else "source")
    elif len(words(prompt, language.stopword_set)) < 4 and not brings_text:
        missing.append("detail")
    if parts.domain == "code" and not any(character.isdigit() for character in prompt):
        missing.append("code")
    if parts.goal == "compare":
        missing.append("compare")
    if (parts.goal == "plan" or parts.domain == "travel") and not any(character.isdigit() for character in prompt):
        missing.append("plan")
    if parts.audience is None and parts.goal != "translate" and not code:
        missing.append("audience")
    if parts.goal in _WRITING_GOALS and not code and parts.tone is None:
        missing.append("tone")
    set_length = _OF_SET_LENGTH.search(prompt)
    if parts.length is None and not set_length and not code and parts.goal not in ("translate", "plan", "improve"):
        missing.append("length")
    if not parts.context and not code and parts.format not in _FORMS_WITH_A_PURPOSE:
        missing.append("purpose")
    if parts.format is None and not code and _format(parts, language) == language.format_phrases["general"]:
        missing.append("format")
    return missing


def _brings_text(parts: PromptParts, prompt: str) -> bool:
    return parts.quotes or bool(parts.blocks) or ":\n" in prompt or len(prompt) > 400


def _confidence(parts: PromptParts, known: Summary, findings: list[Finding]) -> float:
    """Estimates the confidence from the parts found in the prompt; at most 0.9, because rules do not understand it."""
    found = 0.35
    found += 0.15 if parts.goal else 0.0
    found += 0.1 if parts.format else 0.0
    found += 0.1 if parts.audience else 0.0
    found += 0.05 if parts.length else 0.0
    found += 0.05 if parts.constraints or parts.tone else 0.0
    found += 0.05 if parts.context or known.facts else 0.0
    found += 0.05 if findings else 0.0
    return round(min(found, 0.9), 2)


def _reasoning(
    parts: PromptParts,
    known: Summary,
    findings: list[Finding],
    language: Language | None,
    questions: list[str],
    unruled: UnruledLanguage | None,
) -> str:
    english = language_of("en")
    phrases = (language or english).reasoning  # type: ignore[union-attr]
    clues = {
        "goal": parts.goal != "talk" and parts.goal,
        "audience": parts.audience,
        "length": parts.length,
        "format": parts.format,
        "constraints": parts.constraints,
        "context": parts.context,
        "language": parts.answer_language,
    }
    said = [phrases["offline"]]
    if language is None:
        said.append(unruled.reasoning if unruled else NO_RULES)
    found = [phrases[name] for name, clue in clues.items() if clue]
    if found:
        said.append(phrases["found"].format(", ".join(found)))
    if findings:
        numbers = ", ".join(f"[{number}]" for number in sorted({finding.number for finding in findings}))
        said.append(phrases["documents"].format(numbers))
    if known.facts or known.constraints or known.decisions or known.tried:
        said.append(phrases["summary"])
    if questions:
        said.append(phrases["missing"])
    return " ".join(said)


def _related(summary: Summary, prompt: str, language: Language | None, embedder: Embedder) -> Summary:
    """Returns the entries of the summary that are related to this prompt and not already in it."""
    stopwords = language.stopword_set if language else frozenset()
    floor = language.meaning_floor if language else 0.9
    asked = set(words(prompt, stopwords))
    prompt_vector, _ = embedder.embed(prompt)
    present = normalized(prompt)
    own_placeholders = set(PLACEHOLDER.findall(prompt))

    def related(items: list[str]) -> list[str]:
        kept = []
        for item in items:
            if normalized(item) in present or own_placeholders & set(PLACEHOLDER.findall(item)):
                continue
            shared = {word for word in asked & set(words(item, stopwords)) if not word.isdigit()}
            named = len(shared) >= _ENOUGH_WORDS or any(len(word) >= _LONG_WORD for word in shared)
            if named or embedder.similarity(prompt_vector, embedder.embed(item)[0]) >= floor + _MARGIN:
                kept.append(item)
        return kept[:_MOST_FACTS]

    return Summary(
        goal=summary.goal,
        facts=related([fact for fact in summary.facts if len(split_sentences(fact)) <= 3]),
        constraints=related(summary.constraints),
        decisions=related(summary.decisions),
        tried=related(summary.tried),
    )
