"""A service process, wired and ready to run. Every service's `build_app` returns one."""

import gc
from dataclasses import dataclass

from starlette.types import ASGIApp

from shared.service.http import bad_request
from shared.service.http_protocol import BadRequestAnswer
from shared.service.process import Component, run, run_service
from shared.service.telemetry import Telemetry

_COLLECTIONS_AFTER = (20_000, 20, 20)


@dataclass(frozen=True)
class ServiceApp:
    """The parts of a process. Components start in order and stop in reverse order.

    `host` and `port` are where HTTP is served; `grace_seconds` is how long shutdown may take. `bad_request` answers
    bytes that are not a valid HTTP request.
    """

    telemetry: Telemetry
    http: ASGIApp
    host: str
    port: int
    grace_seconds: float
    components: tuple[Component, ...]
    bad_request: BadRequestAnswer = bad_request

    def run(self) -> None:
        """Serves until SIGTERM, then drains."""
        run(self.serve())

    async def serve(self) -> None:
        """As `run`, in the running event loop."""
        # What exists now lives as long as the process, so the collector need not visit it again. What a request makes
        # is freed by reference counts; collecting less often saves a tenth of the CPU.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_COLLECTIONS_AFTER)
        await run_service(
            telemetry=self.telemetry,
            http_app=self.http,
            host=self.host,
            port=self.port,
            components=self.components,
            grace_seconds=self.grace_seconds,
            bad_request=self.bad_request,
        )
