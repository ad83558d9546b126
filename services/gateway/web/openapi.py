"""Builds the OpenAPI document: FastAPI's own, completed by the bodies, headers, roles and problems of the routes."""

import re
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from services.gateway.identity.caller import Role
from services.gateway.identity.roles import declared_roles
from shared.contracts.documents import DocumentSearchRequest, DocumentText
from shared.contracts.problems import PROBLEM_MEDIA_TYPE, PROBLEMS
from shared.contracts.upgrade_http import ProblemDetails, UpgradeRequest, UpgradeView
from shared.contracts.workspaces_http import ChangedMember, NewKey, NewMember, NewWorkspace

UPGRADE_PATH = "/api/upgrade"
_REF = "#/components/schemas/{model}"
_REQUEST_MODELS: tuple[type[BaseModel], ...] = (
    UpgradeRequest,
    DocumentText,
    DocumentSearchRequest,
    NewWorkspace,
    NewMember,
    ChangedMember,
    NewKey,
)
_ANSWER_MODELS: tuple[type[BaseModel], ...] = (UpgradeView, ProblemDetails)
_WORKSPACE = "another workspace of the person than their personal one"
_SECURITY: list[dict[str, list[str]]] = [{"apiKey": []}, {"bearer": []}]
_OPERATOR_SECURITY: list[dict[str, list[str]]] = [{"operatorKey": []}]
_SECURITY_SCHEMES = {
    "operatorKey": {"type": "apiKey", "in": "header", "name": "X-Admin-Key"},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "bearer": {"type": "http", "scheme": "bearer"},
}
_IDEMPOTENT_PATHS = (
    UPGRADE_PATH,
    "/api/documents",
    "/api/workspaces",
    "/api/workspaces/{id}/members",
    "/api/keys",
)
_EVENT_STREAM = "/api/upgrades/{id}/events"
_PATH_PARAMETER = re.compile(r"\{(\w+)\}")
# Parameters that a dependency reads from the path itself, so that FastAPI cannot describe them.
_PATH_MEANINGS = {"/api/workspaces/{id}": "the workspace's id"}
_LAST_EVENT_ID = "`id` of the last event received: the stream continues after it"
_UPGRADE_ANSWER_HEADERS = {
    "Location": "where the upgrade can be read",
    "Preference-Applied": "the preferences of `Prefer` that were applied",
    "Idempotent-Replayed": "`true` when an earlier request with this Idempotency-Key created the upgrade",
    "RateLimit": "what is left of the rate limit: `r` upgrades, and one more in `t` seconds",
    "RateLimit-Policy": "the rate limit: `q` upgrades in `w` seconds",
}


def openapi_document(app: FastAPI, routers: Sequence[APIRouter], upgrade_role: Role) -> dict[str, Any]:
    """The document of all public routes. Roles come from the routes of `routers`, and `upgrade_role` for upgrades."""
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    _, definitions = models_json_schema(
        [(model, "validation") for model in _REQUEST_MODELS] + [(model, "serialization") for model in _ANSWER_MODELS],
        by_alias=True,
        ref_template=_REF,
    )
    for name, schema in definitions["$defs"].items():
        schemas.setdefault(name, schema)
    document["components"]["securitySchemes"] = _SECURITY_SCHEMES
    document["paths"][UPGRADE_PATH] = {"post": _upgrade_operation()}
    roles = {(path, method): role for router in routers for path, method, role in declared_roles(router)}
    roles[UPGRADE_PATH, "post"] = upgrade_role
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _complete(path, method, operation)
            if (path, method) in roles:
                operation["x-required-role"] = roles[path, method].value
                if not path.startswith("/api/workspaces/{id}"):
                    operation.setdefault("parameters", []).append(_header("X-Workspace-Id", _WORKSPACE))
    return document


def _complete(path: str, method: str, operation: dict[str, Any]) -> None:
    _declare_path_parameters(path, operation)
    if path == _EVENT_STREAM:
        operation.setdefault("parameters", []).append(_header("Last-Event-ID", _LAST_EVENT_ID))
    operation["security"] = _OPERATOR_SECURITY if path.startswith("/api/admin/") else _SECURITY
    operation["responses"].pop("422", None)
    operation["responses"]["default"] = {
        "description": "A problem: " + ", ".join(sorted(PROBLEMS)),
        "content": {PROBLEM_MEDIA_TYPE: _schema(ProblemDetails)},
    }
    if method == "post" and path in _IDEMPOTENT_PATHS:
        operation.setdefault("parameters", []).append(
            _header("Idempotency-Key", "1 to 255 printable characters: the same key and body create one thing in 24 h")
        )


def _declare_path_parameters(path: str, operation: dict[str, Any]) -> None:
    parameters = operation.setdefault("parameters", [])
    declared = {parameter["name"] for parameter in parameters if parameter["in"] == "path"}
    for found in _PATH_PARAMETER.finditer(path):
        if found[1] not in declared:
            meaning = _PATH_MEANINGS.get(path[: found.end()], f"the {found[1]}")
            parameters.append({**_header(found[1], meaning), "in": "path", "required": True})
    if not parameters:
        del operation["parameters"]


def _upgrade_operation() -> dict[str, Any]:
    headers = {
        name: {"description": meaning, "schema": {"type": "string"}}
        for name, meaning in _UPGRADE_ANSWER_HEADERS.items()
    }
    answer = {"headers": headers, "content": {"application/json": _schema(UpgradeView)}}
    return {
        "tags": ["upgrades"],
        "summary": "Upgrade a prompt",
        "description": "Waits for the result, by default 30 s (see `Prefer`). The upgrade continues after that.",
        "operationId": "upgrade",
        "parameters": [_header("Prefer", "`wait=N` (seconds, at most 60) or `respond-async`")],
        "requestBody": {"required": True, "content": {"application/json": _schema(UpgradeRequest)}},
        "responses": {
            "200": {"description": "The upgrade has ended", **answer},
            "202": {"description": "The upgrade has not ended yet; `Location` is where it can be read", **answer},
        },
    }


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return {"schema": {"$ref": _REF.format(model=model.__name__)}}


def _header(name: str, description: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "description": description, "schema": {"type": "string"}}
