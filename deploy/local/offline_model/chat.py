"""Answers chat requests: chooses the rules by the name of the requested JSON schema or by the prompt's sections."""

from dataclasses import asdict
from typing import Any

import orjson

from deploy.local.offline_model.answers import minimal_value
from deploy.local.offline_model.contextual_rewrite import contextual_rewrite
from deploy.local.offline_model.embedder import Embedder
from deploy.local.offline_model.full_rewrite import full_rewrite
from deploy.local.offline_model.summaries import read_summary, summarize
from shared.llm.sections import parse_sections

MODEL = "offline-rules-1"
_OFFLINE_NOTE = (
    "This is the offline model: it follows fixed rules and can only rewrite prompts and condense conversations."
)


def answer(messages: list[dict[str, Any]], response_format: dict[str, Any], embedder: Embedder) -> str:
    """Returns the content of the answer: JSON where structured output is requested, else a plain sentence."""
    sections = _sections(messages)
    wanted = response_format.get("json_schema") or {}
    name = wanted.get("name")
    if name == "prompt_rewrite" or (name is None and "prompt" in sections):
        return _json(_rewrite(sections, embedder))
    if name == "conversation_summary" or (name is None and "conversation" in sections):
        return _json(asdict(summarize(sections)))
    if wanted:
        return _json(minimal_value(wanted.get("schema") or {"type": "object"}))
    return _json({"note": _OFFLINE_NOTE}) if response_format.get("type") == "json_object" else _OFFLINE_NOTE


def _rewrite(sections: dict[str, str], embedder: Embedder) -> dict[str, Any]:
    sections = {"prompt": "", **sections}
    summary = read_summary(sections.get("summary"))
    mode = sections.get("mode", "").strip()
    rules = contextual_rewrite if mode == "contextual" else full_rewrite
    return {
        "mode": mode if mode in ("full", "contextual") else None,
        "language": sections.get("language", "").strip(),
        **asdict(rules(sections, summary, embedder)),
    }


def _sections(messages: list[dict[str, Any]]) -> dict[str, str]:
    """Returns the sections of the first user message that has any; later ones only describe the answer's format."""
    for message in messages:
        if message["role"] == "user":
            sections = parse_sections(message["content"])
            if sections:
                return sections
    return {}


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()
