"""A stand-in for the gateway in tests of rag: it takes holds on embeddings, refuses them, or is down."""

import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response

from deploy.local.ports import free_port
from shared.contracts.problems import PROBLEM_MEDIA_TYPE
from shared.contracts.quota import EmbeddingsHold, EmbeddingsHoldEnd, SpentEvent
from tests.http_server import served


class GatewayStandIn:
    """A real HTTP server that grants holds of at most `room` embeddings and `token_room` tokens; None: any number."""

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
        async with served(self._app(), self.port):
            yield self
