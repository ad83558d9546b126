"""Stands where the gateway is, for rag: takes holds on embeddings, refuses them, or is out."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response

from deploy.local.servers import free_port
from shared.contracts.problems import PROBLEM_MEDIA_TYPE
from shared.contracts.quota import EmbeddingsHold, EmbeddingsHoldEnd, SpentEvent


class GatewayStandIn:
    """One real server. It gives out holds of at most `room` embeddings and `token_room` tokens; None is any number."""

    def __init__(self) -> None:
        self.taken: dict[str, EmbeddingsHold] = {}
        self.ended: dict[str, list[SpentEvent]] = {}
        self.room: int | None = None
        self.token_room: int | None = None
        self.out = False
        self.port = free_port()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _app(self) -> FastAPI:
        app = FastAPI()

        @app.post("/internal/holds/embeddings")
        async def take(hold: EmbeddingsHold) -> Response:
            if self.out:
                return Response(status_code=503)
            if self.room is not None and hold.embeddings > self.room:
                body = {"code": "quota_exceeded", "meter": "embeddings", "limit": 9, "used": 9, "held": 0}
                return JSONResponse(body, 429, media_type=PROBLEM_MEDIA_TYPE)
            if self.token_room is not None and hold.tokens > self.token_room:
                body = {"code": "quota_exceeded", "meter": "tokens", "limit": 9, "used": 9, "held": 0}
                return JSONResponse(body, 429, media_type=PROBLEM_MEDIA_TYPE)
            self.taken[hold.hold_id] = hold
            return Response(status_code=204)

        @app.post("/internal/holds/embeddings/{hold_id}/end")
        async def end(hold_id: str, ended: EmbeddingsHoldEnd) -> Response:
            if self.out:
                return Response(status_code=503)
            self.ended[hold_id] = ended.spent
            return Response(status_code=204)

        return app

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator["GatewayStandIn"]:
        server = uvicorn.Server(
            uvicorn.Config(self._app(), host="127.0.0.1", port=self.port, log_config=None, lifespan="off")
        )
        server.capture_signals = contextlib.nullcontext  # type: ignore[assignment]
        task = asyncio.create_task(server.serve())
        try:
            yield self
        finally:
            server.should_exit = True
            await task
