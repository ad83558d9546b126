"""Authentication, workspaces, members, keys and audit: two replicas on one real store, JWKS from a real HTTP server."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request

from deploy.local.servers import ServerProcess
from services.gateway.http.problems import ProblemError
from services.gateway.identity.api_keys import API_KEYS, DEMO_TENANT_ID, ApiKeys, DemoKey
from services.gateway.identity.audit import AUDIT, Audit
from services.gateway.identity.identify import Authenticator
from services.gateway.identity.workspaces import PEOPLE, WORKSPACES, People, Person, Workspaces
from shared.contracts.contract import format_utc, new_id, now_utc
from shared.storage.sqlite import SqliteDatabase
from tests.component.gateway_world import API_KEY, World
from tests.component.gateway_world import module_world as module_world
from tests.component.identity_world import KeyServer, home_of, person, replica, visible, with_key, with_token
from tests.component.test_gateway_requests import problem
from tests.conftest import eventually
from tests.unit.jwt_keys import ISSUER, SECRET, ec_key, ed_key, rsa_key, secret_token


@pytest.fixture(scope="module")
async def first(world: World) -> AsyncIterator[ServerProcess]:
    async with replica(world) as gateway:
        yield gateway


@pytest.fixture(scope="module")
async def second(world: World) -> AsyncIterator[ServerProcess]:
    async with replica(world) as gateway:
        yield gateway


async def team_of(owner: httpx.AsyncClient, **members: str) -> str:
    """A new workspace of the client's person, with members."""
    made = await owner.post("/api/workspaces", json={"name": "Team"})
    assert made.status_code == 201, made.text
    for subject, role in members.items():
        added = await owner.post(
            f"/api/workspaces/{made.json()['id']}/members", json={"subject": subject, "role": role}
        )
        assert added.status_code == 201, added.text
    return str(made.json()["id"])


async def key_of(client: httpx.AsyncClient, role: str, **more: Any) -> dict[str, Any]:
    answer = await client.post("/api/keys", json={"name": f"a {role}", "role": role, **more})
    assert answer.status_code == 201, answer.text
    body: dict[str, Any] = answer.json()
    return body


async def test_the_demo_key_has_a_workspace(world: World) -> None:
    async with world.client() as client:
        body = (await client.get("/api/workspaces")).json()
        assert [(item["id"], item["role"]) for item in body["items"]] == [(DEMO_TENANT_ID, "OWNER")]
        assert body["nextCursor"] is None
        problem(await client.post("/api/workspaces", json={"name": "x"}), 403, "forbidden")
        problem(await client.delete(f"/api/workspaces/{DEMO_TENANT_ID}"), 409, "conflict")
        problem(await client.get("/api/quota", headers={"X-Workspace-Id": new_id()}), 404, "not_found")


async def test_ten_first_requests_make_one_workspace(first: ServerProcess, second: ServerProcess) -> None:
    async with person(first, "racer") as one, person(second, "racer") as two:
        answers = await asyncio.gather(*(client.get("/api/workspaces") for client in (one, two) for _ in range(5)))
        assert [answer.status_code for answer in answers] == [200] * 10
        assert len({item["id"] for answer in answers for item in answer.json()["items"]}) == 1
        assert all(len(answer.json()["items"]) == 1 for answer in answers)
        entries = (await one.get("/api/audit")).json()["items"]
        assert [(entry["action"], entry["actor"]) for entry in entries] == [
            ("workspace.created", {"kind": "person", "id": "racer"})
        ]


async def test_bad_credentials(world: World, first: ServerProcess) -> None:
    good = secret_token(sub="ann")
    cases: list[list[tuple[str, str]]] = [
        [],
        [("X-API-Key", "")],
        [("X-API-Key", "pu_wrong")],
        [("X-API-Key", "pu_" + "a" * 12 + "_" + "b" * 43)],
        [("X-API-Key", good)],
        [("Authorization", "Basic abc")],
        [("Authorization", "Bearer")],
        [("Authorization", "Bearer a.b.c")],
        [("Authorization", f"Bearer {good}x")],
        [("Authorization", f"Bearer {secret_token(exp=int(time.time()) - 3600)}")],
        [("Authorization", f"Bearer {secret_token(aud='another')}")],
        [("Authorization", f"Bearer {rsa_key().token()}")],
        [("Authorization", "Bearer " + "x" * 20_000)],
        [("Authorization", f"Bearer {good}"), ("X-API-Key", API_KEY)],
        [("Authorization", f"Bearer {good}"), ("Authorization", f"Bearer {API_KEY}")],
        [("X-API-Key", API_KEY), ("X-API-Key", "pu_other")],
    ]
    async with httpx.AsyncClient(base_url=first.url) as client:
        for headers in cases:
            answer = await client.get("/api/workspaces", headers=headers)
            problem(answer, 401, "unauthenticated")
            assert answer.headers["www-authenticate"].startswith("Bearer")
            assert (await client.post("/api/upgrade", headers=headers, json={})).status_code == 401
        same = [("Authorization", f"Bearer {API_KEY}"), ("X-API-Key", API_KEY)]
        assert (await client.get("/api/workspaces", headers=same)).status_code == 200
        # A gateway without settings for tokens knows none.
        answer = await client.get(f"{world.gateway.url}/api/workspaces", headers={"Authorization": f"Bearer {good}"})
        problem(answer, 401, "unauthenticated")


async def test_published_keys(world: World) -> None:
    async with KeyServer().serving() as server, replica(world, JWT_JWKS_URL=server.url) as gateway:
        server.entries = [rsa_key().jwk(), ec_key().jwk()]

        async def status(token: str) -> int:
            async with with_token(gateway, token) as client:
                return (await client.get("/api/workspaces")).status_code

        assert [await status(key.token()) for key in (rsa_key(), ec_key())] == [200, 200]
        assert await status(secret_token()) == 401
        assert await status(secret_token(secret=SECRET * 2, algorithm="HS512")) == 401
        assert server.fetches == 1
        server.entries = [ec_key().jwk(), ed_key("new").jwk()]
        assert await status(ed_key("new").token()) == 200
        assert server.fetches == 2
        flood = await asyncio.gather(*(status(rsa_key(f"k{n % 4}").token(jti=str(n))) for n in range(100)))
        assert Counter(flood) == {401: 100}
        assert server.fetches == 2
        assert await status(rsa_key().token()) == 401
        assert await status(ec_key().token()) == 200


async def test_an_outage_of_the_identity_provider(world: World) -> None:
    async with KeyServer().serving() as server, replica(world, JWT_JWKS_URL=server.url) as gateway:
        server.out = True
        async with with_token(gateway, rsa_key().token()) as client:
            answer = await client.get("/api/workspaces")
            problem(answer, 503, "unavailable")
            assert answer.headers["retry-after"]
        async with with_key(gateway, API_KEY) as client:
            assert (await client.get("/api/workspaces")).status_code == 200


async def test_workspaces_of_a_person(first: ServerProcess, second: ServerProcess) -> None:
    async with person(first, "wanda") as wanda, person(second, "stranger") as stranger:
        home = await home_of(wanda)
        made = await asyncio.gather(*(wanda.post("/api/workspaces", json={"name": f"T{n}"}) for n in range(10)))
        assert Counter(answer.status_code for answer in made) == {201: 2, 409: 8}
        teams = [answer.json()["id"] for answer in made if answer.status_code == 201]
        listed = (await wanda.get("/api/workspaces")).json()["items"]
        assert {item["id"] for item in listed} == {home, *teams}
        assert {item["role"] for item in listed} == {"OWNER"}
        pages, cursor = [], None
        while True:
            page = await wanda.get("/api/workspaces", params={"limit": 2} | ({"cursor": cursor} if cursor else {}))
            pages += page.json()["items"]
            cursor = page.json()["nextCursor"]
            if cursor is None:
                break
        assert pages == listed
        # Neither read nor chosen by anybody else, and nobody learns that it exists.
        for headers, path in (({}, "/api/workspaces/{}"), ({"X-Workspace-Id": "{}"}, "/api/upgrades")):
            theirs, nobodys = [
                await stranger.get(path.format(id), headers={k: v.format(id) for k, v in headers.items()})
                for id in (teams[0], new_id())
            ]
            assert visible(theirs) == visible(nobodys)
            problem(theirs, 404, "not_found")
        problem(await wanda.delete(f"/api/workspaces/{home}"), 409, "conflict")
        assert (await wanda.delete(f"/api/workspaces/{teams[0]}")).status_code == 204
        problem(await wanda.get(f"/api/workspaces/{teams[0]}"), 404, "not_found")
        problem(await wanda.delete(f"/api/workspaces/{teams[0]}"), 404, "not_found")
        assert (await wanda.post("/api/workspaces", json={"name": "again"})).status_code == 201


async def test_a_workspace_is_made_once_per_idempotency_key(first: ServerProcess) -> None:
    async with person(first, "ida") as ida:
        headers = {"Idempotency-Key": "one"}
        made = [await ida.post("/api/workspaces", json={"name": "Once"}, headers=headers) for _ in range(3)]
        assert len({answer.content for answer in made}) == 1
        assert [answer.headers.get("idempotent-replayed") for answer in made] == [None, "true", "true"]
        assert len((await ida.get("/api/workspaces")).json()["items"]) == 2
        problem(
            await ida.post("/api/workspaces", json={"name": "Else"}, headers=headers), 422, "idempotency_key_reused"
        )
        problem(await ida.post("/api/workspaces", json={"name": " ", "x": 1}), 422, "invalid_request")


async def test_members(first: ServerProcess) -> None:
    async with person(first, "olga") as olga:
        team = await team_of(olga, **{"adam": "ADMIN", "mia": "MEMBER", "auth0|a/b c": "VIEWER"})
        members = f"/api/workspaces/{team}/members"
        listed = (await olga.get(members)).json()["items"]
        assert {(item["subject"], item["role"]) for item in listed} == {
            ("olga", "OWNER"), ("adam", "ADMIN"), ("mia", "MEMBER"), ("auth0|a/b c", "VIEWER")
        }  # fmt: skip
        problem(await olga.post(members, json={"subject": "mia", "role": "VIEWER"}), 409, "conflict")
        async with person(first, "adam") as adam, person(first, "mia") as mia:
            assert team in [item["id"] for item in (await mia.get("/api/workspaces")).json()["items"]]
            body = problem(await mia.get(members), 403, "forbidden")
            assert "ADMIN" in body["detail"]
            body = problem(await adam.post(members, json={"subject": "new", "role": "OWNER"}), 403, "forbidden")
            assert body["requiredRole"] == "OWNER"
            problem(await adam.patch(f"{members}/olga", json={"role": "VIEWER"}), 403, "forbidden")
            problem(await adam.delete(f"{members}/olga"), 403, "forbidden")
            problem(await adam.delete(f"/api/workspaces/{team}"), 403, "forbidden")
            changed = await adam.patch(f"{members}/auth0%7Ca%2Fb%20c", json={"role": "MEMBER"})
            assert (changed.status_code, changed.json()["role"]) == (200, "MEMBER")
            assert (await adam.delete(f"{members}/auth0%7Ca%2Fb%20c")).status_code == 204
            problem(await adam.delete(f"{members}/nobody"), 404, "not_found")
            assert (await adam.delete(f"{members}/mia")).status_code == 204
            problem(await mia.get(f"/api/workspaces/{team}"), 404, "not_found")
        problem(await olga.delete(f"{members}/olga"), 409, "conflict")
        problem(await olga.patch(f"{members}/olga", json={"role": "ADMIN"}), 409, "conflict")
        actions = [
            entry["action"]
            for entry in (await olga.get("/api/audit", headers={"X-Workspace-Id": team})).json()["items"]
        ]
        assert actions == [
            "member.removed", "member.removed", "member.changed", *["member.added"] * 3, "workspace.created"
        ]  # fmt: skip


async def test_dot_segments_are_no_subjects(first: ServerProcess) -> None:
    async with person(first, "dora") as dora:
        home = await home_of(dora)
        for subject in (".", ".."):
            member = {"subject": subject, "role": "VIEWER"}
            body = problem(await dora.post(f"/api/workspaces/{home}/members", json=member), 422, "invalid_request")
            assert body["errors"][0]["field"] == "subject"


async def test_two_owners_who_leave_at_once(first: ServerProcess, second: ServerProcess) -> None:
    async with person(first, "lea") as lea, person(second, "leo") as leo:
        team = await team_of(lea, leo="OWNER")
        for _ in range(5):
            answers = await asyncio.gather(
                lea.delete(f"/api/workspaces/{team}/members/lea"), leo.delete(f"/api/workspaces/{team}/members/leo")
            )
            assert sorted(answer.status_code for answer in answers) == [204, 409]
            stayed, left = (lea, "leo") if answers[0].status_code == 409 else (leo, "lea")
            back = await stayed.post(f"/api/workspaces/{team}/members", json={"subject": left, "role": "OWNER"})
            assert back.status_code == 201, back.text
            # The other replica remembers for a moment that somebody was not there.
            gone = leo if left == "leo" else lea
            await eventually(lambda gone=gone: _is(gone.get(f"/api/workspaces/{team}"), 200))  # type: ignore[misc]


async def _is(request: Any, status: int) -> bool:
    return bool((await request).status_code == status)


async def test_a_promotion_respects_the_limit_of_owned_workspaces(first: ServerProcess) -> None:
    async with person(first, "kim") as kim, person(first, "max") as boss:
        await team_of(kim)
        await team_of(kim)
        team = await team_of(boss, kim="MEMBER")
        problem(await boss.patch(f"/api/workspaces/{team}/members/kim", json={"role": "OWNER"}), 409, "conflict")
        assert (await boss.patch(f"/api/workspaces/{team}/members/kim", json={"role": "ADMIN"})).status_code == 200


async def test_keys(world: World, first: ServerProcess) -> None:
    async with person(first, "kate") as kate:
        home = await home_of(kate)
        made = {role: await key_of(kate, role) for role in ("VIEWER", "MEMBER", "ADMIN", "OWNER")}
        for role, key in made.items():
            assert set(key) == {
                "id", "name", "role", "prefix", "createdAt", "expiresAt", "lastUsedAt", "createdBy", "key"
            }  # fmt: skip
            assert key["key"].startswith("pu_")
            async with with_key(first, key["key"]) as client:
                [listed] = (await client.get("/api/workspaces")).json()["items"]
                assert (listed["id"], listed["role"]) == (home, role)
                other = await client.get("/api/workspaces", headers={"X-Workspace-Id": DEMO_TENANT_ID})
                problem(other, 404, "not_found")
                assert (await client.get("/api/workspaces", headers={"X-Workspace-Id": home})).status_code == 200
        listed = (await kate.get("/api/keys")).json()["items"]
        assert [item["id"] for item in listed] == [key["id"] for key in reversed(made.values())]
        assert all("key" not in item for item in listed)
        assert await world.files_hold([key["key"] for key in made.values()]) == []
        async with with_key(first, made["ADMIN"]["key"]) as admin:
            problem(await admin.post("/api/keys", json={"name": "n", "role": "OWNER"}), 403, "forbidden")
            problem(await admin.delete(f"/api/keys/{made['OWNER']['id']}"), 403, "forbidden")
            assert (await admin.delete(f"/api/keys/{made['VIEWER']['id']}")).status_code == 204
            problem(await admin.delete(f"/api/keys/{made['VIEWER']['id']}"), 404, "not_found")

        async def is_noted() -> bool:
            items = (await kate.get("/api/keys")).json()["items"]
            return all(item["lastUsedAt"] for item in items)

        await eventually(is_noted)


async def test_a_repeated_request_gets_the_key_that_the_store_lacks(world: World, first: ServerProcess) -> None:
    async with person(first, "rita") as rita:
        headers = {"Idempotency-Key": "my key"}
        body = {"name": "n", "role": "MEMBER"}
        answers = await asyncio.gather(*(rita.post("/api/keys", json=body, headers=headers) for _ in range(5)))
        assert {answer.status_code for answer in answers} == {201}
        assert len({answer.content for answer in answers}) == 1
        assert len((await rita.get("/api/keys")).json()["items"]) == 1
        assert await world.files_hold([answers[0].json()["key"]]) == []
        # Another admin who guesses the idempotency key gets a key of their own.
        home = await home_of(rita)
        await rita.post(f"/api/workspaces/{home}/members", json={"subject": "sam", "role": "ADMIN"})
        async with person(first, "sam") as sam:
            own = await sam.post("/api/keys", json=body, headers=headers | {"X-Workspace-Id": home})
            assert own.status_code == 201
            assert own.json()["id"] != answers[0].json()["id"]


async def test_keys_end(first: ServerProcess, second: ServerProcess) -> None:
    async with person(first, "eve") as eve:
        past = format_utc(now_utc() - timedelta(seconds=5))
        body = problem(
            await eve.post("/api/keys", json={"name": "n", "role": "MEMBER", "expiresAt": past}), 422, "invalid_request"
        )
        assert body["errors"][0]["field"] == "expiresAt"
        never = {"name": "n", "role": "MEMBER", "expiresAt": "9999-12-31T23:59:59-14:00"}
        body = problem(await eve.post("/api/keys", json=never), 422, "invalid_request")
        assert body["errors"][0]["field"] == "expiresAt"
        soon = await key_of(eve, "MEMBER", expiresAt=format_utc(now_utc() + timedelta(seconds=2)))
        revoked = await key_of(eve, "MEMBER")
        async with with_key(first, soon["key"]) as short, with_key(second, revoked["key"]) as other:
            assert (await short.get("/api/workspaces")).status_code == 200
            assert (await other.get("/api/workspaces")).status_code == 200
            assert (await eve.delete(f"/api/keys/{revoked['id']}")).status_code == 204
            at = time.monotonic()
            async with with_key(first, revoked["key"]) as here:
                problem(await here.get("/api/workspaces"), 401, "unauthenticated")
            await eventually(lambda: _is(other.get("/api/workspaces"), 401), timeout=5)
            assert time.monotonic() - at < 5
            await eventually(lambda: _is(short.get("/api/workspaces"), 401), timeout=5)


async def test_a_repeated_request_gets_a_key_that_has_expired_since(first: ServerProcess) -> None:
    async with person(first, "ella") as ella:
        headers = {"Idempotency-Key": "a short one"}
        body = {"name": "n", "role": "MEMBER", "expiresAt": format_utc(now_utc() + timedelta(seconds=2))}
        made = await ella.post("/api/keys", json=body, headers=headers)
        assert made.status_code == 201
        async with with_key(first, made.json()["key"]) as short:
            await eventually(lambda: _is(short.get("/api/workspaces"), 401), timeout=5)
        again = await ella.post("/api/keys", json=body, headers=headers)
        assert (again.status_code, again.content) == (201, made.content)
        assert again.headers["idempotent-replayed"] == "true"
        # What is asked for anew is refused, and claims no key.
        late = {"Idempotency-Key": "too late"}
        problem(await ella.post("/api/keys", json=body, headers=late), 422, "invalid_request")
        assert (await ella.post("/api/keys", json=body | {"expiresAt": None}, headers=late)).status_code == 201


async def test_a_key_never_exceeds_the_role_of_its_person(first: ServerProcess) -> None:
    async with person(first, "otto") as otto:
        team = await team_of(otto, nina="ADMIN")
        async with person(first, "nina", team) as nina:
            key = await key_of(nina, "ADMIN")
            async with with_key(first, key["key"]) as by_key:
                child = await key_of(by_key, "MEMBER")
                changed = await otto.patch(f"/api/workspaces/{team}/members/nina", json={"role": "VIEWER"})
                assert changed.status_code == 200
                problem(await by_key.get("/api/keys"), 403, "forbidden")
                [listed] = (await by_key.get("/api/workspaces")).json()["items"]
                assert listed["role"] == "VIEWER"
                assert (await otto.delete(f"/api/workspaces/{team}/members/nina")).status_code == 204
                problem(await by_key.get("/api/workspaces"), 401, "unauthenticated")
            async with with_key(first, child["key"]) as orphan:
                problem(await orphan.get("/api/workspaces"), 401, "unauthenticated")
        # Who comes back makes new ones.
        otto.headers["X-Workspace-Id"] = team
        assert (await otto.get("/api/keys")).json()["items"] == []
        nina_again = {"subject": "nina", "role": "ADMIN"}
        assert (await otto.post(f"/api/workspaces/{team}/members", json=nina_again)).status_code == 201
        for old in (key, child):
            async with with_key(first, old["key"]) as client:
                problem(await client.get("/api/workspaces"), 401, "unauthenticated")


async def test_keys_left_by_an_interrupted_removal_stay_invalid(world: World, first: ServerProcess) -> None:
    async with person(first, "olga") as olga:
        team = await team_of(olga, nick="ADMIN")
        async with person(first, "nick", team) as nick:
            key = await key_of(nick, "ADMIN")
        async with world.collection(API_KEYS) as keys:
            stored = await keys.get(key["id"])
            assert stored is not None
            assert (await olga.delete(f"/api/workspaces/{team}/members/nick")).status_code == 204
            await keys.insert(stored)  # as if the process had ended in between
        nick_again = {"subject": "nick", "role": "ADMIN"}
        assert (await olga.post(f"/api/workspaces/{team}/members", json=nick_again)).status_code == 201
        async with with_key(first, key["key"]) as client:
            problem(await client.get("/api/workspaces"), 401, "unauthenticated")


async def test_a_revoked_key_makes_no_lasting_change_on_any_replica(
    first: ServerProcess, second: ServerProcess
) -> None:
    """A cached caller is not enough to create keys or members."""
    async with person(first, "ivan") as ivan:
        key = await key_of(ivan, "OWNER")
        home = await home_of(ivan)
        async with with_key(second, key["key"]) as other:
            assert (await other.get("/api/keys")).status_code == 200
            assert (await ivan.delete(f"/api/keys/{key['id']}")).status_code == 204
            made = await other.post("/api/keys", json={"name": "n", "role": "ADMIN"})
            problem(made, 401, "unauthenticated")
            member = {"subject": "evil", "role": "OWNER"}
            problem(await other.post(f"/api/workspaces/{home}/members", json=member), 401, "unauthenticated")
        assert (await ivan.get("/api/keys")).json()["items"] == []


async def test_the_content_of_a_deleted_workspace_is_erased(world: World, first: ServerProcess) -> None:
    async with person(first, "dora") as dora:
        team = await team_of(dora)
        dora.headers["X-Workspace-Id"] = team
        key = await key_of(dora, "MEMBER")
        repeatable = {"Idempotency-Key": "dora's"}
        document = await dora.post("/api/documents", json={"title": "T", "text": "words"}, headers=repeatable)
        assert (await dora.post("/api/keys", json={"name": "n", "role": "MEMBER"}, headers=repeatable)).is_success
        assert len(await world.claims_of(team)) == 2
        upgrade = (await dora.post("/api/upgrade", json={"userPrompt": "mail dora@example.org"})).json()
        del dora.headers["X-Workspace-Id"]
        assert (await dora.delete(f"/api/workspaces/{team}")).status_code == 204
        async with with_key(first, key["key"]) as client:
            problem(await client.get("/api/workspaces"), 401, "unauthenticated")

        async def is_gone() -> bool:
            [record] = [record for record in await world.records() if record["_id"] == upgrade["id"]]
            gone = document.json()["id"] not in world.siblings.documents and "erasedAt" in record
            return gone and not await world.claims_of(team)

        await eventually(is_gone, timeout=30)


async def test_a_deleted_workspace_is_purged_twice(tmp_path: Path) -> None:
    """Work accepted just before the deletion may arrive after the first purge."""
    begun = moment = now_utc()
    database = SqliteDatabase(tmp_path / "gateway.sqlite3")
    people = People(database.collection(PEOPLE))
    workspaces = Workspaces(database.collection(WORKSPACES), people, clock=lambda: moment)
    await database.start()
    try:
        team = new_id()
        await workspaces.create(team, "Team", Person.of(ISSUER, "dan"))
        await workspaces.delete(team)
        looked_at = []
        for seconds in (5, 11, 60, 300, 311, 320, 86_400):
            moment = begun + timedelta(seconds=seconds)
            if await workspaces.to_purge(10) == [team]:
                looked_at.append(seconds)
                await workspaces.mark_purged(team)
        assert looked_at == [11, 311]
    finally:
        await database.stop(1)


async def test_audit_entries_name_author_and_address(world: World) -> None:
    async with (
        replica(world, JWT_SECRET=SECRET, TRUSTED_PROXIES="127.0.0.0/8") as gateway,
        person(gateway, "paul") as paul,
    ):
        paul.headers["X-Forwarded-For"] = "6.6.6.6, 203.0.113.77"
        key = await key_of(paul, "MEMBER")
        entry = (await paul.get("/api/audit")).json()["items"][0]
        assert entry["action"] == "key.created"
        assert entry["target"] == key["id"]
        assert entry["actor"] == {"kind": "person", "id": "paul"}
        assert entry["address"] == "203.0.113.77"
        assert entry["details"] == {"name": "a MEMBER", "role": "MEMBER"}
        assert entry["outcome"] == "done"
        page = (await paul.get("/api/audit", params={"limit": 1})).json()
        assert page["items"] == [entry]
        older = (await paul.get("/api/audit", params={"limit": 1, "cursor": page["nextCursor"]})).json()
        assert [entry["action"] for entry in older["items"]] == ["workspace.created"]
        # What was refused is no change.
        problem(await paul.post("/api/keys", json={"name": "", "role": "OWNER"}), 422, "invalid_request")
        assert len((await paul.get("/api/audit")).json()["items"]) == 2


class _Reads:
    """A collection that counts how often it is read."""

    def __init__(self, collection: Any) -> None:
        self._collection = collection
        self.reads = 0

    def __getattr__(self, name: str) -> Any:
        if name in ("get", "get_many", "find", "find_one", "count"):
            self.reads += 1
        return getattr(self._collection, name)


async def test_a_busy_caller_costs_no_reads(tmp_path: Path) -> None:
    database = SqliteDatabase(tmp_path / "gateway.sqlite3")
    specs = (API_KEYS, WORKSPACES, PEOPLE, AUDIT)
    keys_in, workspaces_in, people_in, audit_in = [_Reads(database.collection(spec)) for spec in specs]
    await database.start()
    try:
        keys = ApiKeys(keys_in)
        workspaces = Workspaces(workspaces_in, People(people_in))
        await workspaces.ensure_demo(DEMO_TENANT_ID)
        demo = DemoKey(None)
        _, plain = await keys.create(demo.caller, key_id=new_id(), name="n", role=demo.caller.role, expires_at=None)
        identity = Authenticator(demo=demo, keys=keys, tokens=None, workspaces=workspaces, audit=Audit(audit_in))
        request = _request(plain)
        before = keys_in.reads + workspaces_in.reads
        callers = await asyncio.gather(*(identity(request) for _ in range(50)))
        assert len(set(callers)) == 1
        assert keys_in.reads + workspaces_in.reads - before == 2
        assert [await identity(request) for _ in range(50)] == callers
        assert keys_in.reads + workspaces_in.reads - before == 2
    finally:
        await database.stop(1)


class _SlowReads:
    """A collection whose `find_one` reads at once and returns when the test allows it."""

    def __init__(self, collection: Any) -> None:
        self._collection = collection
        self.has_read = asyncio.Event()
        self.may_return = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._collection, name)

    async def find_one(self, *arguments: Any) -> Any:
        found = await self._collection.find_one(*arguments)
        self.has_read.set()
        await self.may_return.wait()
        return found


async def test_a_look_up_from_before_a_change_is_not_cached(tmp_path: Path) -> None:
    database = SqliteDatabase(tmp_path / "gateway.sqlite3")
    keys_in: Any = _SlowReads(database.collection(API_KEYS))
    audit = Audit(database.collection(AUDIT))
    workspaces = Workspaces(database.collection(WORKSPACES), People(database.collection(PEOPLE)))
    await database.start()
    try:
        keys, demo = ApiKeys(keys_in), DemoKey(None)
        await workspaces.ensure_demo(DEMO_TENANT_ID)
        key, plain = await keys.create(demo.caller, key_id=new_id(), name="n", role=demo.caller.role, expires_at=None)
        authenticator = Authenticator(demo=demo, keys=keys, tokens=None, workspaces=workspaces, audit=audit)
        running = asyncio.create_task(authenticator(_request(plain)))
        await keys_in.has_read.wait()
        assert await keys.revoke(demo.caller, key)
        authenticator.forget()
        keys_in.may_return.set()
        assert (await running).credential_id == key.id
        with pytest.raises(ProblemError):
            await authenticator(_request(plain))
    finally:
        await database.stop(1)


def _request(key: str) -> Request:
    return Request({"type": "http", "headers": [(b"x-api-key", key.encode())]})
