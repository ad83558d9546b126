"""Calls every route of the OpenAPI document with every role and without: who is admitted, and what refusals reveal."""

import asyncio
import itertools
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.local.servers import ServerProcess
from shared.contracts.contract import new_id
from tests.component.gateway_world import API_KEY, World
from tests.component.gateway_world import module_world as module_world
from tests.component.identity_world import home_of, person, replica, visible, with_key
from tests.component.test_gateway_requests import problem

LADDER = ("VIEWER", "MEMBER", "ADMIN", "OWNER")
# What each route needs, read off the table of roles: a route that is not in here fails the walk.
NEEDS = {
    "post /api/upgrade": "MEMBER",
    "get /api/upgrades": "VIEWER",
    "get /api/upgrades/{id}": "VIEWER",
    "delete /api/upgrades/{id}": "MEMBER",
    "get /api/upgrades/{id}/events": "VIEWER",
    "delete /api/users/{userId}": "ADMIN",
    "post /api/documents": "MEMBER",
    "get /api/documents": "VIEWER",
    "post /api/documents/search": "VIEWER",
    "get /api/documents/{id}": "VIEWER",
    "delete /api/documents/{id}": "MEMBER",
    "post /api/prompts/create": "ADMIN",
    "get /api/prompts": "VIEWER",
    "get /api/prompts/{id}": "VIEWER",
    "post /api/prompts/{id}/preview": "ADMIN",
    "get /api/prompts/{id}/rollout": "VIEWER",
    "post /api/prompts/{id}/rollout": "ADMIN",
    "post /api/prompts/{id}/rollback": "ADMIN",
    "get /api/quota": "VIEWER",
    "get /api/stats": "VIEWER",
    "post /api/workspaces": "VIEWER",
    "get /api/workspaces": "VIEWER",
    "get /api/workspaces/{id}": "VIEWER",
    "delete /api/workspaces/{id}": "OWNER",
    "get /api/workspaces/{id}/members": "ADMIN",
    "post /api/workspaces/{id}/members": "ADMIN",
    "patch /api/workspaces/{id}/members/{subject}": "ADMIN",
    "delete /api/workspaces/{id}/members/{subject}": "ADMIN",
    "get /api/keys": "ADMIN",
    "post /api/keys": "ADMIN",
    "delete /api/keys/{id}": "ADMIN",
    "get /api/audit": "ADMIN",
}
PERSONS_ONLY = "post /api/workspaces"
ACCESS_PAGE = Path(__file__).parents[2] / "docs" / "access.md"


def test_the_documentation_lists_the_same_roles() -> None:
    said = {
        f"{method.lower()} {path}": role
        for role in LADDER
        for row in re.findall(rf"^\| {role} \| (.*) \|$", ACCESS_PAGE.read_text(encoding="utf-8"), re.MULTILINE)
        for method, path in re.findall(r"`([A-Z]+) (/api/[^`]*)`", row)
    }
    assert said == NEEDS


@dataclass(frozen=True)
class Call:
    """One operation of the document, which can be sent as a request."""

    method: str
    path: str
    needs: str | None

    @property
    def name(self) -> str:
        return f"{self.method} {self.path}"

    async def send(self, client: httpx.AsyncClient, **values: str) -> httpx.Response:
        """Sends it with an empty body where it has one: who may do it is told before what is wrong with it."""
        path = self.path
        for name in ("id", "subject", "userId"):
            path = path.replace(f"{{{name}}}", values.get(name, "nobody"))
        body: dict[str, Any] = {"json": {}} if self.method in ("post", "put", "patch") else {}
        async with client.stream(self.method.upper(), path, **body) as answer:
            if not answer.headers.get("content-type", "").startswith("text/event-stream"):
                await answer.aread()
            return answer


@dataclass(frozen=True)
class Walked:
    """A workspace with clients of every role, by token and by key, and a client of another workspace."""

    gateway: ServerProcess
    team: str
    persons: dict[str, httpx.AsyncClient]
    keys: dict[str, httpx.AsyncClient]
    stranger: httpx.AsyncClient
    calls: list[Call]

    def clients(self) -> dict[str, httpx.AsyncClient]:
        by_token = {f"{role} by token": client for role, client in self.persons.items()}
        return by_token | {f"{role} by key": client for role, client in self.keys.items()}


@pytest.fixture(scope="module")
async def walked(world: World) -> AsyncIterator[Walked]:
    async with replica(world) as gateway, person(gateway, "owner") as owner:
        team = (await owner.post("/api/workspaces", json={"name": "Team"})).json()["id"]
        for role in LADDER[:-1]:
            member = {"subject": role.lower(), "role": role}
            assert (await owner.post(f"/api/workspaces/{team}/members", json=member)).status_code == 201
        persons = {role: person(gateway, role.lower(), team) for role in LADDER}
        keys = {}
        for role in LADDER:
            made = await persons["OWNER"].post("/api/keys", json={"name": role, "role": role})
            keys[role] = with_key(gateway, made.json()["key"])
        calls = _calls((await owner.get("/openapi.json")).json())
        stranger = person(gateway, "stranger")
        yield Walked(gateway, team, persons, keys, stranger, calls)
        for client in (stranger, *persons.values(), *keys.values()):
            await client.aclose()


def _calls(document: dict[str, Any]) -> list[Call]:
    return [
        Call(method, path, operation.get("x-required-role"))
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]


def test_every_route_declares_what_the_table_says(walked: Walked) -> None:
    declared = {call.name: call.needs for call in walked.calls if not call.path.startswith("/api/admin/")}
    assert declared == NEEDS
    assert all(call.needs is None for call in walked.calls if call.path.startswith("/api/admin/"))


async def test_every_route_requires_a_credential(walked: Walked) -> None:
    async with httpx.AsyncClient(base_url=walked.gateway.url) as client:
        for call in walked.calls:
            answer = await call.send(client, id=walked.team)
            if call.path.startswith("/api/admin/"):
                assert answer.status_code in (401, 404), call.name
                continue
            problem(answer, 401, "unauthenticated")
            assert answer.headers["www-authenticate"].startswith("Bearer"), call.name


async def test_a_refused_method_gets_all_allowed_methods(walked: Walked) -> None:
    declared: dict[str, set[str]] = {}
    for call in walked.calls:
        declared.setdefault(call.path, set()).add(call.method.upper())
    # Whoever reads `search` or `create` as an id gets to the routes of one document, or one prompt.
    declared["/api/documents/search"] |= declared["/api/documents/{id}"]
    declared["/api/prompts/create"] |= declared["/api/prompts/{id}"]
    told = {}
    async with httpx.AsyncClient(base_url=walked.gateway.url) as client:
        for path in declared:
            answer = await client.request("TRACE", path.replace("{id}", walked.team))
            problem(answer, 405, "method_not_allowed")
            told[path] = set(answer.headers["allow"].split(", "))
        assert told == declared
        file = await client.request("TRACE", "/static-offline-docs/swagger-ui-bundle.js")
        problem(file, 405, "method_not_allowed")
        assert file.headers["allow"] == "GET, HEAD"


async def test_each_role_is_admitted_exactly_where_it_suffices(walked: Walked) -> None:
    wrong = []
    for call, (name, client) in itertools.product(walked.calls, walked.clients().items()):
        if call.name == "delete /api/workspaces/{id}" and name.startswith("OWNER"):
            continue  # an owner does get in, and there would be nothing left to walk
        answer = await call.send(client, id=walked.team if "/workspaces/" in call.path else new_id())
        role = name.split(" ")[0]
        if call.needs is None:
            expected = answer.status_code in (401, 404)
        elif call.name == PERSONS_ONLY and name.endswith("key"):
            expected = answer.status_code == 403
        elif LADDER.index(role) >= LADDER.index(call.needs):
            expected = answer.status_code not in (401, 403, 500)
        else:
            expected = answer.status_code == 403
            body = problem(answer, 403, "forbidden")
            assert call.needs in body["detail"], call.name
            assert body["requiredRole"] == call.needs
        if not expected:
            wrong.append((call.name, name, answer.status_code))
    assert wrong == []


async def test_roles_do_not_carry_over_to_another_workspace(walked: Walked) -> None:
    async with person(walked.gateway, "owner") as owner_at_home:
        home = await home_of(owner_at_home)
    for call in walked.calls:
        if "/workspaces/{id}" not in call.path:
            continue
        for name, client in walked.clients().items():
            if name != "OWNER by token":
                theirs = await call.send(client, id=home, subject="owner")
                assert theirs.status_code == 404, (call.name, name)
                assert visible(theirs) == visible(await call.send(client, id=new_id(), subject="owner"))


async def test_refusals_do_not_reveal_what_other_tenants_have(world: World, walked: Walked) -> None:
    owner = walked.persons["OWNER"]
    document = (await owner.post("/api/documents", json={"title": "T", "text": "words"})).json()["id"]
    upgrade = (await owner.post("/api/upgrade", json={"userPrompt": "write about rain", "userId": "u1"})).json()["id"]
    key = (await owner.post("/api/keys", json={"name": "n", "role": "VIEWER"})).json()["id"]
    ids = {"upgrades": upgrade, "documents": document, "keys": key, "workspaces": walked.team}
    async with with_key(walked.gateway, API_KEY) as demo:
        for client in (walked.stranger, demo):
            for call in walked.calls:
                kind = call.path.split("/")[2]
                if "{id}" not in call.path or kind not in ids:
                    continue
                theirs = await call.send(client, id=ids[kind], subject="member")
                for other in (new_id(), "no-id-at-all", ids[kind].upper()):
                    assert visible(theirs) == visible(await call.send(client, id=other, subject="member")), call.name
                assert theirs.status_code == 404, call.name
    assert (await owner.get(f"/api/upgrades/{upgrade}")).status_code == 200
    assert (await owner.get(f"/api/documents/{document}")).status_code == 200
    # Erasing a user of that name at home touches nobody else's.
    assert (await walked.stranger.delete("/api/users/u1")).status_code == 204
    assert (await owner.get(f"/api/upgrades/{upgrade}")).status_code == 200


async def test_choosing_a_foreign_workspace_is_not_found_on_every_route(walked: Walked) -> None:
    for call in walked.calls:
        if call.needs is None or "/workspaces/{id}" in call.path:
            continue
        answers = []
        for workspace_id in (walked.team, new_id(), "rubbish"):
            async with person(walked.gateway, "stranger", workspace_id) as client:
                answers.append(visible(await call.send(client)))
        assert answers[0][0] == 404, call.name
        assert answers[1:] == answers[:1] * 2, call.name


BODIES: dict[str, dict[str, Any]] = {
    "post /api/upgrade": {"userPrompt": "write about rain"},
    "post /api/documents": {"title": "T", "text": "words"},
    "post /api/documents/search": {"query": "rain"},
    "post /api/workspaces": {"name": "Mine"},
    "post /api/workspaces/{id}/members": {"subject": "evil", "role": "OWNER"},
    "patch /api/workspaces/{id}/members/{subject}": {"role": "OWNER"},
    "post /api/keys": {"name": "more", "role": "ADMIN"},
    "post /api/prompts/create": {"name": "brief", "type": "UPGRADER", "template": "{{ data_rules }}"},
    "post /api/prompts/{id}/preview": {"userPrompt": "write about rain"},
    "post /api/prompts/{id}/rollout": {},
    "post /api/prompts/{id}/rollback": {"reason": "worse"},
}
SLOW_SECONDS = 3.0  # well above what a body may take without a second look at its caller


async def test_a_caller_who_loses_access_while_the_body_arrives_is_refused(walked: Walked) -> None:
    """On every route with a body: the caller is identified again after it was read."""
    with_body = [call for call in walked.calls if call.method in ("post", "patch", "put") and call.needs]
    assert {call.name for call in with_body} == set(BODIES)
    owner = walked.persons["OWNER"]

    async def send_slowly(call: Call) -> int:
        made = (await owner.post("/api/keys", json={"name": "leaked", "role": "OWNER"})).json()

        async def body() -> AsyncIterator[bytes]:
            whole = json.dumps(BODIES[call.name]).encode()
            yield whole[:1]
            await asyncio.sleep(SLOW_SECONDS)
            assert (await owner.delete(f"/api/keys/{made['id']}")).status_code == 204
            yield whole[1:]

        path = call.path.replace("{id}", walked.team).replace("{subject}", "member")
        headers = {"Content-Type": "application/json"}
        async with with_key(walked.gateway, made["key"]) as client:
            answer = await client.request(call.method.upper(), path, content=body(), headers=headers)
        return answer.status_code

    keys_before = {item["id"] for item in (await owner.get("/api/keys")).json()["items"]}
    answers = await asyncio.gather(*(send_slowly(call) for call in with_body))
    # A key makes no workspace, whoever has it.
    expected = [403 if call.name == PERSONS_ONLY else 401 for call in with_body]
    assert answers == expected, [call.name for call in with_body]
    assert {item["id"] for item in (await owner.get("/api/keys")).json()["items"]} == keys_before
    members = (await owner.get(f"/api/workspaces/{walked.team}/members")).json()["items"]
    assert "evil" not in {member["subject"] for member in members}
