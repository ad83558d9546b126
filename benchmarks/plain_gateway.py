"""A plain gateway to compare the real one with: FastAPI on uvicorn, each request doing its steps in sequence.

Run as `python -m benchmarks.plain_gateway OPTIONS`, the fields of `Options` as JSON. With `one_at_a_time`, a request
starts only after the previous one is finished; otherwise requests are handled concurrently.
"""

import asyncio
import contextlib
import hashlib
import hmac
import json
import sqlite3
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, Header, HTTPException
from redis.asyncio import Redis

from benchmarks.backends import Broker, open_sqlite
from services.gateway.quota.holds import Hold, HoldSize
from services.gateway.quota.redis_scripts import SCRIPTS, AdmissionConnection
from services.gateway.quota.state import AdmissionState, admit_call
from services.gateway.upgrades.accepted_record import TASK_MODEL
from shared.contracts.contract import new_id, now_utc, period_of
from shared.contracts.internal_http import TenantCounters
from shared.contracts.quota import PLAN_LIMITS, Plan, TenantQuota
from shared.contracts.topics import INBOX_OF
from shared.contracts.upgrade_http import UpgradeRequest
from shared.contracts.upgrade_tasks import ConversationMessage, Stage, TaskOptions, UpgradeTask
from shared.messaging.cloudevents import encode
from shared.messaging.connection import make_producer
from shared.privacy.placeholders import PlaceholderMap
from shared.privacy.redaction import redact

_TENANT = "bench-tenant"
_PREFIX = 12
_REQUEST_BYTES = 4 * 1024 * 1024
_DEADLINE = timedelta(seconds=600)
# About what the gateway holds for such a request; the amounts do not affect the script's work.
_SIZE = HoldSize(upgrades=1, tokens=20_000, embeddings=0)
_MAX_ACCEPTED = 1_000_000


@dataclass(frozen=True)
class Options:
    """The addresses of broker, Redis and database file, and the one valid API key."""

    port: int
    kind: str
    url: str
    redis: str
    path: str
    api_key: str
    one_at_a_time: bool


def plain_app(options: Options) -> FastAPI:
    """Returns the application, whose lifespan opens and closes all connections."""
    rows = _open_rows(options)
    redis = Redis.from_url(options.redis)
    producers: list[Any] = []
    run_ids: list[str] = []
    slot: contextlib.AbstractAsyncContextManager[None] = (
        asyncio.Lock() if options.one_at_a_time else contextlib.nullcontext()
    )

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        run_ids.append(await _install_admission(options.redis))
        producers.append(make_producer(Broker(options.kind, options.url).settings(), _REQUEST_BYTES))
        await producers[0].start()
        yield
        await producers[0].stop()
        await redis.aclose()

    app = FastAPI(lifespan=lifespan)

    @app.post("/api/upgrade", status_code=202)
    async def upgrade(request: UpgradeRequest, x_api_key: Annotated[str, Header()]) -> dict[str, str]:
        async with slot:
            return await accept(request, x_api_key)

    async def accept(request: UpgradeRequest, x_api_key: str) -> dict[str, str]:
        tenant_id = _tenant_of(rows, x_api_key)
        if tenant_id is None:
            raise HTTPException(401)
        task = _redacted_task(request, tenant_id)
        if not await _admitted(redis, run_ids[0], task):
            raise HTTPException(429)
        inbox = INBOX_OF[Stage.SUMMARIZER]
        value, headers = encode(inbox, task, source="gateway", subject=task.upgrade_id)
        rows.execute("INSERT INTO accepted VALUES (?, ?)", (task.upgrade_id, value.decode()))
        await producers[0].send_and_wait(inbox.name, value, key=task.upgrade_id.encode(), headers=headers)
        await redis.xadd(f"plain:{task.upgrade_id}", {"event": "accepted", "data": json.dumps({"id": task.upgrade_id})})
        return {"id": task.upgrade_id, "status": "accepted"}

    return app


def _open_rows(options: Options) -> sqlite3.Connection:
    rows = open_sqlite(
        Path(options.path),
        "CREATE TABLE accepted (id TEXT PRIMARY KEY, body TEXT NOT NULL)",
        "CREATE TABLE keys (prefix TEXT PRIMARY KEY, digest TEXT NOT NULL, tenant_id TEXT NOT NULL)",
    )
    digest = hashlib.sha256(options.api_key.encode()).hexdigest()
    rows.execute("INSERT INTO keys VALUES (?, ?, ?)", (options.api_key[:_PREFIX], digest, _TENANT))
    return rows


async def _install_admission(redis_url: str) -> str:
    """Installs the tenant's admission state as the gateway does; returns the run id that the script needs."""
    connection = AdmissionConnection(redis_url)
    await connection.start()
    try:
        state, period = AdmissionState(connection), period_of(now_utc())
        run_id, token = await state.begin_rebuild(_TENANT, period, new_id())
        counters = TenantCounters(tenant_id=_TENANT, period=period)
        limits = PLAN_LIMITS[Plan.ENTERPRISE]
        quota = TenantQuota(
            tenant_id=_TENANT, period=period, plan=Plan.ENTERPRISE, plan_version=1, limits=limits, counters=counters
        )
        await state.install(run_id, token, quota, [])
        return run_id
    finally:
        await connection.stop(1.0)


def _tenant_of(rows: sqlite3.Connection, api_key: str) -> str | None:
    row = rows.execute("SELECT digest, tenant_id FROM keys WHERE prefix = ?", (api_key[:_PREFIX],)).fetchone()
    digest = hashlib.sha256(api_key.encode()).hexdigest()
    return row[1] if row is not None and hmac.compare_digest(row[0], digest) else None


def _redacted_task(request: UpgradeRequest, tenant_id: str) -> UpgradeTask:
    placeholders = PlaceholderMap()
    history = [
        ConversationMessage(role=message.role, content=redact(message.content, placeholders))
        for message in request.conversation_history
    ]
    now = now_utc()
    return TASK_MODEL[Stage.SUMMARIZER](
        upgrade_id=new_id(),
        tenant_id=tenant_id,
        period=period_of(now),
        created_at=now,
        deadline=now + _DEADLINE,
        user_prompt=redact(request.user_prompt, placeholders),
        conversation_history=history,
        options=TaskOptions(**request.options.model_dump()),
        placeholder_counts=placeholders.counts(),
        itinerary=list(Stage),
    )


async def _admitted(redis: Redis, run_id: str, task: UpgradeTask) -> bool:
    """Runs the gateway's own admission script for one request."""
    hold = Hold(task.tenant_id, task.upgrade_id, task.period, _SIZE, task.deadline, subject="person")
    keys, arguments = admit_call(hold, now_ms=round(time.time() * 1000), most_accepted=_MAX_ACCEPTED)
    answer = await redis.evalsha(SCRIPTS["admit"].sha, len(keys), *keys, run_id, *arguments)
    return bool(answer[0] == b"admitted")


if __name__ == "__main__":
    chosen = Options(**json.loads(sys.argv[1]))
    uvicorn.run(plain_app(chosen), host="127.0.0.1", port=chosen.port, access_log=False, log_level="warning")
