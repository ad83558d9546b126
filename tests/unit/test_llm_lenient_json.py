"""Answers of models that are not quite the JSON that was asked for, each with the prompt that is in it."""

import json
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

from shared.llm.lenient_json import InvalidOutput, read_output


class Answer(BaseModel):
    """The shape of the rewriter's answer."""

    mode: Literal["full", "contextual"] | None = None
    language: str = ""
    upgraded_prompt: str
    reasoning: str = ""
    missing_questions: list[str] = []
    confidence: float | None = Field(default=None, allow_inf_nan=False)
    cited_documents: list[int] = []


P = "Write a packing list for three days in Oslo."
WHOLE: dict[str, Any] = {
    "mode": "full",
    "language": "en",
    "upgraded_prompt": P,
    "reasoning": "r",
    "missing_questions": ["When?"],
    "confidence": 0.8,
    "cited_documents": [1],
}


def without(*names: str, **changed: object) -> str:
    return json.dumps({name: value for name, value in (WHOLE | changed).items() if name not in names})


TEXT = json.dumps(WHOLE)
CAMEL = json.dumps({"upgradedPrompt": P, "missingQuestions": ["When?"], "citedDocuments": [1], "confidence": 0.8})

USABLE: dict[str, str] = {
    "as asked": TEXT,
    "indented": json.dumps(WHOLE, indent=2),
    "only the prompt": json.dumps({"upgraded_prompt": P}),
    **{f"no {name}": without(name) for name in WHOLE if name != "upgraded_prompt"},
    **{f"null {name}": without(**{name: None}) for name in WHOLE if name != "upgraded_prompt"},
    "a string for the questions": without(missing_questions="When?"),
    "an empty string for the questions": without(missing_questions=""),
    "an object for the questions": without(missing_questions={"1": "When?"}),
    "numbers among the questions": without(missing_questions=["When?", 3, None]),
    "nested questions": without(missing_questions=[["When?"], ["Where?"]]),
    "confidence in words": without(confidence="high"),
    "confidence as text": without(confidence="0.8"),
    "confidence as a percentage": without(confidence="80 %"),
    "confidence true": without(confidence=True),
    "confidence NaN": TEXT.replace("0.8", "NaN"),
    "confidence in a list": without(confidence=[0.8]),
    "documents as text": without(cited_documents="1"),
    "documents as marks": without(cited_documents=["[1]", "[2]"]),
    "documents as objects": without(cited_documents=[{"id": 1}]),
    "documents as floats": without(cited_documents=[1.0]),
    "documents none": without(cited_documents="none"),
    "an unknown mode": without(mode="complete"),
    "a mode in capitals": without(mode="FULL"),
    "a list for the mode": without(mode=["full"]),
    "a list for the language": without(language=["en"]),
    "a list for the reasoning": without(reasoning=["one", "two"]),
    "an object for the reasoning": without(reasoning={"why": "because"}),
    "an extra field": without(notes="n"),
    "camelCase": CAMEL,
    "names with blanks": json.dumps({"Upgraded Prompt": P}),
    "names in capitals": json.dumps({"UPGRADED_PROMPT": P}),
    "names with hyphens": json.dumps({"upgraded-prompt": P}),
    "thinking before": f"<think>They want {{a list}}.</think>{TEXT}",
    "an answer in thinking": f'<think>{{"upgraded_prompt": "no"}}</think>\n{TEXT}',
    "thinking in capitals": f"<THINK>hm</THINK>{TEXT}",
    "thinking whose start is lost": f"They want a list.</think>{TEXT}",
    "a code fence": f"```json\n{TEXT}\n```",
    "a fence without a language": f"```\n{TEXT}\n```",
    "a fence that does not end": f"```json\n{TEXT}",
    "words before": f"Here is the JSON:\n{TEXT}",
    "words after": f"{TEXT}\nI hope this helps!",
    "braces in words before": f"The set {{a, b}} is not it: {TEXT}",
    "braces after": f"{TEXT} (see {{above}})",
    "twice": f"{TEXT}{TEXT}",
    "twice in fences": f"```json\n{TEXT}\n```\n```json\n{TEXT}\n```",
    "an empty object first": f"{{}}{TEXT}",
    "the schema first": f'{{"type": "object", "properties": {{"upgraded_prompt": {{"type": "string"}}}}}}\n{TEXT}',
    "a trailing comma": TEXT[:-1] + ",}",
    "a trailing comma in a list": TEXT.replace("[1]", "[1,]"),
    "a raw line break": json.dumps({"reasoning": "a\nb", "upgraded_prompt": P}).replace("\\n", "\n"),
    "a raw tab": json.dumps({"reasoning": "a\tb", "upgraded_prompt": P}).replace("\\t", "\t"),
    "a NUL in a side field": without(reasoning="a\u0000b"),
    "in a list": f"[{TEXT}]",
    "in another object": json.dumps({"result": WHOLE}),
    "in two others": json.dumps({"answer": {"output": WHOLE}}),
    "in an object of a list": json.dumps({"answers": [WHOLE]}),
    "cut off in the last field": without("cited_documents", "confidence")[:-8],
    "cut off after the prompt": TEXT[: TEXT.index('"reasoning"') + 14],
    "cut off before the next name": TEXT[: TEXT.index('"reasoning"') - 1],
    "a byte order mark": f"\ufeff{TEXT}",
    "escaped slashes": TEXT.replace("/", "\\/"),
    "escaped unicode": json.dumps(WHOLE, ensure_ascii=True),
}


@pytest.mark.parametrize("text", USABLE.values(), ids=USABLE.keys())
def test_a_usable_answer_is_used(text: str) -> None:
    assert read_output(text, Answer).upgraded_prompt == P


def test_the_usable_answers_are_many() -> None:
    assert len(USABLE) >= 60


def test_side_fields_keep_what_fits() -> None:
    answer = read_output(
        without(confidence="80 %", missing_questions="When?", cited_documents=["[2]"], mode="Full"), Answer
    )
    assert (answer.confidence, answer.missing_questions, answer.cited_documents, answer.mode) == (
        0.8,
        ["When?"],
        [2],
        "full",
    )


def test_a_prompt_in_sections_becomes_lines() -> None:
    text = json.dumps({"upgraded_prompt": {"ROLE": "a guide", "TASK": "plan", "FORMAT": ["a table", "a list"]}})
    assert read_output(text, Answer).upgraded_prompt == "ROLE: a guide\nTASK: plan\nFORMAT: a table\na list"


def test_raw_line_breaks_of_the_prompt_are_kept() -> None:
    assert read_output('{"upgraded_prompt": "ROLE: a\nTASK: b"}', Answer).upgraded_prompt == "ROLE: a\nTASK: b"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I cannot do that.",
        "{}",
        '{"upgraded_prompt": null}',
        '{"prompt": "another field"}',
        '{"upgraded_prompt": "cut off in the pro',
        '{"type": "object", "properties": {"upgraded_prompt": {"type": "string"}}}',
        "<think>" + TEXT + "</think>",
        "{" * 5_000,
        '{"a":' * 3_000,
    ],
)
def test_what_holds_no_prompt_is_refused(text: str) -> None:
    with pytest.raises(InvalidOutput):
        read_output(text, Answer)


def test_the_hint_names_what_was_cut_off() -> None:
    with pytest.raises(InvalidOutput) as fault:
        read_output('{"upgraded_prompt": "cut off in the pro', Answer, cut_off=True)
    assert fault.value.hint == "it was cut off before upgraded_prompt ended"
