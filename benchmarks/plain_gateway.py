"""What the gateway is compared with: FastAPI on uvicorn, each request doing its steps one after another.

`python -m benchmarks.plain_gateway '{"port": …, "kind": …, "url": …, "redis": …, "path": …}'`
"""

import contextlib
import json
import sqlite3
import sys
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from fastapi import FastAPI
from redis.asyncio import Redis

from benchmarks.brokers import Broker
from services.gateway.accepted_record import TASK_MODEL
from shared.contracts.contract import now_utc
from shared.contracts.ids import new_id
from shared.contracts.topics import INBOX_OF
from shared.contracts.upgrade_http import UpgradeRequest
from shared.contracts.upgrade_tasks import ConversationMessage, Stage, TaskOptions
from shared.messaging.cloudevents import encode
from shared.messaging.connection import make_producer
from shared.privacy.redaction import PlaceholderMap, redact

TENANT = "bench-tenant"
_REQUEST_BYTES = 4 * 1024 * 1024


def plain_app(broker: Broker, redis_url: str, path: str) -> FastAPI:
    """The application; everything is opened with it."""
    rows = sqlite3.connect(path, isolation_level=None)
    rows.execute("PRAGMA journal_mode=WAL")
    rows.execute("PRAGMA synchronous=FULL")
    rows.execute("CREATE TABLE accepted (id TEXT PRIMARY KEY, body TEXT NOT NULL)")
    redis = Redis.from_url(redis_url)
    producers: list[Any] = []

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        producers.append(make_producer(broker.settings(), _REQUEST_BYTES))
        await producers[0].start()
        yield
        await producers[0].stop()
        await redis.aclose()

    app = FastAPI(lifespan=lifespan)

    @app.post("/api/upgrade", status_code=202)
    async def upgrade(request: UpgradeRequest) -> dict[str, str]:
        placeholders = PlaceholderMap()
        history = [
            ConversationMessage(role=message.role, content=redact(message.content, placeholders))
            for message in request.conversation_history
        ]
        upgrade_id, now = new_id(), now_utc()
        task = TASK_MODEL[Stage.SUMMARIZER](
            upgrade_id=upgrade_id,
            tenant_id=TENANT,
            period="2026-11",
            created_at=now,
            deadline=now,
            user_prompt=redact(request.user_prompt, placeholders),
            conversation_history=history,
            options=TaskOptions(**request.options.model_dump()),
            placeholder_counts=placeholders.counts(),
            itinerary=list(Stage),
        )
        inbox = INBOX_OF[Stage.SUMMARIZER]
        value, headers = encode(inbox, task, source="gateway", subject=upgrade_id)
        rows.execute("INSERT INTO accepted VALUES (?, ?)", (upgrade_id, value.decode()))
        await producers[0].send_and_wait(inbox.name, value, key=upgrade_id.encode(), headers=headers)
        await redis.xadd(f"plain:{upgrade_id}", {"event": "accepted", "data": json.dumps({"upgradeId": upgrade_id})})
        return {"id": upgrade_id, "status": "accepted"}

    return app


if __name__ == "__main__":
    options = json.loads(sys.argv[1])
    app = plain_app(Broker(options["kind"], options["url"]), options["redis"], options["path"])
    uvicorn.run(app, host="127.0.0.1", port=options["port"], access_log=False, log_level="warning")
