"""Limits of concurrent uploads by tenant and person, and the minimum speed of an upload."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, cast

import httpx
import pytest
from starlette.requests import HTTPConnection

from services.gateway.documents import uploads
from services.gateway.documents.routes import DocumentRoutes
from services.gateway.documents.uploads import PATIENCE_SECONDS, Pace, UploadPlaces
from services.gateway.http.problems import ProblemError
from services.gateway.identity.caller import Caller, Role
from services.gateway.web.public_app import public_app
from shared.contracts.contract import now_utc
from shared.contracts.documents import DocumentView
from shared.service.settings import ObservabilitySettings
from shared.service.telemetry import Telemetry
from tests.conftest import eventually
from tests.unit.test_gateway_public_http import breaks

FORM = {"Content-Type": "multipart/form-data; boundary=B"}
FILE = b'--B\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\ntext\r\n--B--\r\n'
MIB = 1024 * 1024


class Stored:
    """Stands in for rag, the vault, the audit and the idempotent creations; accepts every document."""

    @contextlib.asynccontextmanager
    async def change(self, *_: Any) -> AsyncIterator[None]:
        yield

    async def submit(self, tenant_id: str, *, document_id: str, title: str, **_: Any) -> DocumentView:
        return DocumentView(
            id=document_id, title=title, status="pending", chunks=0, error=None, created_at=now_utc()
        )  # fmt: skip


async def by_key(request: HTTPConnection, workspace_id: str | None = None, *, fresh: bool = False) -> Caller:
    """A key is `tenant` or `tenant/person`."""
    key = request.headers["x-api-key"]
    tenant, _, person = key.partition("/")
    return Caller(tenant, "someone", Role.MEMBER, key, person_id=person or None)


def gateway() -> httpx.AsyncClient:
    stored = cast(Any, Stored())
    routes = DocumentRoutes(documents=stored, creations=stored, vault=stored, audit=stored)
    app = public_app(
        Telemetry("gateway", ObservabilitySettings()),
        identify=by_key,
        trusted_proxies=(),
        upgrade=breaks,
        upgrade_role=Role.MEMBER,
        routers=[routes.router()],
        asyncapi={},
        event_examples={},
        allowed_origins=[],
        internal_token=None,
    )
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway")


class Idle:
    """A body that begins and never ends; `waited_for` is True once the gateway reads the rest."""

    def __init__(self) -> None:
        self.waited_for = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield FILE[:10]
        self.waited_for = True
        await asyncio.Event().wait()


async def test_idle_uploads_of_one_tenant_do_not_block_others() -> None:
    async with gateway() as client:
        bodies = [Idle() for _ in range(20)]
        uploads = [
            asyncio.create_task(client.post("/api/documents", content=body, headers=FORM | {"X-API-Key": "one"}))
            for body in bodies
        ]

        async def begun() -> bool:
            return any(body.waited_for for body in bodies)

        await eventually(begun)
        for headers, content in ((FORM, FILE), ({"Content-Type": "application/json"}, b'{"title":"t","text":"x"}')):
            answer = await client.post("/api/documents", content=content, headers=headers | {"X-API-Key": "other"})
            assert answer.status_code == 202, answer.text
        for upload in uploads:
            upload.cancel()
        await asyncio.gather(*uploads, return_exceptions=True)
        answer = await client.post("/api/documents", content=FILE, headers=FORM | {"X-API-Key": "one"})
        assert answer.status_code == 202


async def test_a_person_with_many_workspaces_does_not_block_others() -> None:
    async with gateway() as client:
        bodies = [Idle() for _ in range(8)]
        uploads = [
            asyncio.create_task(
                client.post("/api/documents", content=body, headers=FORM | {"X-API-Key": f"workspace{n % 4}/eve"})
            )
            for n, body in enumerate(bodies)
        ]

        async def begun() -> bool:
            return sum(body.waited_for for body in bodies) >= 2

        await eventually(begun)
        for key in ("other", "workspace0/mallory"):
            answer = await client.post("/api/documents", content=FILE, headers=FORM | {"X-API-Key": key})
            assert answer.status_code == 202, answer.text
        assert sum(body.waited_for for body in bodies) == 2
        for upload in uploads:
            upload.cancel()
        await asyncio.gather(*uploads, return_exceptions=True)


@pytest.mark.parametrize(
    ("media_type", "status"), [("multipart/form-data; boundary=B", 422), ("application/json", 400)]
)
async def test_an_idle_upload_is_cut_off(monkeypatch: pytest.MonkeyPatch, media_type: str, status: int) -> None:
    monkeypatch.setattr(uploads, "PATIENCE_SECONDS", 0.05)
    async with gateway() as client:
        headers = {"Content-Type": media_type, "X-API-Key": "one"}
        answer = await client.post("/api/documents", content=Idle(), headers=headers)
    assert answer.status_code == status
    assert "did not come in whole" in answer.text
    assert answer.headers["connection"] == "close"


async def test_only_the_tenant_that_has_used_its_places_waits() -> None:
    places = UploadPlaces(places=3, per_owner=2, wait_seconds=0.05)
    async with contextlib.AsyncExitStack() as held:
        for _ in range(2):
            await held.enter_async_context(places.place("one"))
        with pytest.raises(ProblemError) as refused:
            await held.enter_async_context(places.place("one"))
        assert (refused.value.problem.code, refused.value.headers) == ("unavailable", {"Retry-After": "2"})
        await held.enter_async_context(places.place("other"))
        with pytest.raises(ProblemError):
            await held.enter_async_context(places.place("third"))
    async with places.place("one"), places.place("one"), places.place("third"):
        pass


async def test_an_upload_that_waits_for_its_person_takes_no_place_of_the_workspace() -> None:
    places = UploadPlaces(places=8, per_owner=2, wait_seconds=0.05)
    async with contextlib.AsyncExitStack() as held:
        for workspace in ("one", "two"):
            await held.enter_async_context(places.place("eve", workspace))
        waiting = [asyncio.create_task(held.enter_async_context(places.place("eve", "three"))) for _ in range(5)]
        for person in ("mallory", "trent"):
            await held.enter_async_context(places.place(person, "three"))
        refused = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(refusal, ProblemError) for refusal in refused)
    async with places.place("eve", "eve"), places.place("eve", "eve"):
        pass


def test_a_slow_steady_upload_is_not_cut_off() -> None:
    pace = Pace(started=1000.0)
    for second in range(320):
        assert pace.seconds_left(1000.0 + second) == PATIENCE_SECONDS
        pace.received(MIB // 16)
    assert pace.seconds_left(1320.0) == PATIENCE_SECONDS


def test_a_trickle_gains_no_time() -> None:
    pace = Pace(started=1000.0)
    for second in range(29):
        pace.received(1)
        assert pace.seconds_left(1000.0 + second) == pytest.approx(PATIENCE_SECONDS - second, abs=0.01)
    half_as_fast = Pace(started=1000.0)
    half_as_fast.received(60 * MIB // 32)
    assert half_as_fast.seconds_left(1060.0) == 0


def test_a_fast_start_allows_no_longer_pause() -> None:
    pace = Pace(started=1000.0)
    pace.received(20 * MIB)
    assert pace.seconds_left(1001.0) == PATIENCE_SECONDS
