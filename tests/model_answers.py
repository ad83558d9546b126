"""Default answers of the scripted model server: valid, and the same for the same request."""

import base64
import hashlib
import json
import math
import re
from array import array
from typing import Any

from deploy.local.offline_model.answers import minimal_value
from shared.llm.sections import parse_sections


def default_answer(body: dict[str, Any]) -> str:
    """A schema-valid answer to a chat request, the same for the same request."""
    sections: dict[str, str] = {}
    for message in body.get("messages", []):
        if message.get("role") == "user":
            sections = parse_sections(str(message.get("content", ""))) or sections
    schema = body.get("response_format", {}).get("json_schema", {})
    if "prompt" in sections:
        return json.dumps(_rewrite(sections), ensure_ascii=False)
    if "conversation" in sections:
        return json.dumps(_summary(sections), ensure_ascii=False)
    return json.dumps(minimal_value(schema.get("schema", {"type": "object"})))


def _rewrite(sections: dict[str, str]) -> dict[str, Any]:
    documents = [int(number) for number in re.findall(r"^\[(\d+)\] ", sections.get("documents", ""), re.MULTILINE)]
    context = sections.get("summary") or sections.get("conversation") or ""
    mode = sections.get("mode", "full")
    prompt = sections["prompt"]
    # What the upgrader's checks call an upgrade: headings for a new topic, what it refers to for a follow-up.
    more = "\nFormat: plain text." if mode == "full" else f" It goes on with: {context[:200]}"
    return {
        "mode": mode,
        "language": sections.get("language", "en"),
        "upgraded_prompt": f"Upgraded ({mode}): {prompt}{more}",
        "reasoning": f"Scripted rewrite in {sections.get('language', 'en')} with {len(context)} characters of context.",
        "missing_questions": ["Who is it for?"],
        "confidence": 0.75,
        "cited_documents": documents,
    }


def _summary(sections: dict[str, str]) -> dict[str, Any]:
    turns = [turn for turn in sections["conversation"].split("\n\n") if turn.startswith("user: ")]
    said = [turn.removeprefix("user: ") for turn in turns]
    return {"goal": said[0] if said else "", "facts": said[1:], "constraints": [], "decisions": [], "tried": []}


def embeddings_answer(body: dict[str, Any], dimensions: int, *, packed: bool) -> dict[str, Any]:
    """The body of an answer to an embeddings request; in base64 where that is asked for and `packed` allows it."""
    texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
    vectors: list[Any] = [embedding_of(text, dimensions) for text in texts]
    if body.get("encoding_format") == "base64" and packed:
        vectors = [base64.b64encode(array("f", vector).tobytes()).decode() for vector in vectors]
    tokens = sum(len(text.split()) for text in texts)
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def embedding_of(text: str, dimensions: int) -> list[float]:
    """A unit vector by hashed words: the same text always gives the same, shared words bring texts nearer."""
    vector = [0.0] * dimensions
    for word in re.findall(r"\w+", text.lower()) or [text]:
        digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
        vector[int.from_bytes(digest[:4]) % dimensions] += 1.0 if digest[4] & 1 else -1.0
    length = math.sqrt(sum(value * value for value in vector)) or 1.0
    return [value / length for value in vector]
