"""Renders the AsyncAPI document as one HTML page that loads nothing from other hosts."""

import json
from collections.abc import Mapping
from html import escape
from typing import Any

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1f24;background:#fff}
h1{margin-bottom:.2rem}h2{margin-top:2.5rem;border-top:1px solid #d0d7de;padding-top:1.5rem}code,pre{font:14px/1.45
ui-monospace,monospace}pre{background:#f6f8fa;padding:1rem;overflow:auto;border-radius:6px;max-height:28rem}
table{border-collapse:collapse;width:100%}td,th{border:1px solid #d0d7de;padding:.3rem .6rem;text-align:left;
vertical-align:top}summary{cursor:pointer;margin:.5rem 0}nav a{display:inline-block;margin-right:1rem}
"""


def event_page(document: Mapping[str, Any], examples: Mapping[str, Any]) -> str:
    """The AsyncAPI 3 document as one HTML page: each topic with its messages, their fields and an example.

    `examples` are by topic. A topic that the document repeats for each reader is shown once.
    """
    info = document.get("info", {})
    channels: dict[str, Mapping[str, Any]] = {}
    for name, channel in document.get("channels", {}).items():
        channels.setdefault(_address(name, channel), channel)
    links = "".join(f'<a href="#{escape(name)}">{escape(name)}</a>' for name in channels)
    sections = "".join(_channel(document, name, channel, examples.get(name)) for name, channel in channels.items())
    title = escape(str(info.get("title", "Events")))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head>"
        f"<body><h1>{title}</h1><p>Version {escape(str(info.get('version', '')))} · "
        f'<a href="/asyncapi.json">AsyncAPI document</a> · <a href="/docs">HTTP</a></p>'
        f"<p>{escape(str(info.get('description', '')))}</p><nav>{links}</nav>{sections}</body></html>"
    )


def _channel(document: Mapping[str, Any], name: str, channel: Mapping[str, Any], example: object) -> str:
    messages = [_resolved(document, message) for message in channel.get("messages", {}).values()]
    bindings = channel.get("bindings")
    settings = f"<details><summary>Settings</summary>{_json(bindings)}</details>" if bindings else ""
    return (
        f'<section id="{escape(name)}"><h2><code>{escape(name)}</code></h2>'
        f"<p>{escape(str(channel.get('description', '')))}</p>{settings}"
        + "".join(_message(document, message) for message in messages)
        + (f"<details open><summary>Example</summary>{_json(example)}</details>" if example else "")
        + "</section>"
    )


def _message(document: Mapping[str, Any], message: Mapping[str, Any]) -> str:
    payload = _resolved(document, message.get("payload", {}))
    payload = _resolved(document, payload.get("schema", payload))
    rows = "".join(_row(document, payload, name, schema) for name, schema in payload.get("properties", {}).items())
    table = f"<table><tr><th>field</th><th>type</th><th>meaning</th></tr>{rows}</table>" if rows else ""
    title = escape(str(message.get("title") or message.get("name") or ""))
    return (
        f"<h3>{title}</h3><p>{escape(str(message.get('summary') or message.get('description') or ''))}</p>"
        f"{table}<details><summary>JSON Schema</summary>{_json(payload)}</details>"
    )


def _row(document: Mapping[str, Any], payload: Mapping[str, Any], name: str, schema: Mapping[str, Any]) -> str:
    required = "" if name in payload.get("required", []) else " (optional)"
    meaning = schema.get("description") or _resolved(document, schema).get("description", "")
    return (
        f"<tr><td><code>{escape(name)}</code>{required}</td><td>{escape(_type(schema))}</td>"
        f"<td>{escape(str(meaning))}</td></tr>"
    )


def _type(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).rsplit("/", 1)[-1]
    if "anyOf" in schema:
        return " or ".join(_type(option) for option in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(str(value) for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return str(schema.get("format") or schema.get("type") or schema.get("const") or "any")


def _resolved(document: Mapping[str, Any], node: Mapping[str, Any]) -> Mapping[str, Any]:
    """The node that a chain of at most 8 references within the document leads to."""
    for _ in range(8):
        reference = node.get("$ref")
        if not isinstance(reference, str) or not reference.startswith("#/"):
            break
        found: Any = document
        for part in reference[2:].split("/"):
            found = found.get(part.replace("~1", "/").replace("~0", "~"), {}) if isinstance(found, Mapping) else {}
        node = found
    return node


def _address(name: str, channel: Mapping[str, Any]) -> str:
    return str(channel.get("address") or name)


def _json(value: object) -> str:
    return f"<pre>{escape(json.dumps(value, indent=2, ensure_ascii=False))}</pre>"
