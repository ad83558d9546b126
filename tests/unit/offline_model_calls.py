"""Calls the offline model's rules as its HTTP route does."""

import json

from deploy.local.offline_model.chat import answer
from deploy.local.offline_model.embedder import Embedder
from shared.llm.sections import render_sections

EMBEDDER = Embedder()
FORMAT = {"type": "json_schema", "json_schema": {"name": "prompt_rewrite", "schema": {}}}


def rewrite(prompt: str, language: str = "en", mode: str = "full", **sections: str) -> dict[str, object]:
    """Returns the structured answer to a rewrite request."""
    text = render_sections({"mode": mode, "language": language, "prompt": prompt, **sections})
    answered: dict[str, object] = json.loads(answer([{"role": "user", "content": text}], FORMAT, EMBEDDER))
    return answered
