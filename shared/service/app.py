"""The parts of a service process and its entry point. Every service's `build_app` returns a ServiceApp."""

import gc
from dataclasses import dataclass

from starlette.types import ASGIApp

from shared.service.http import bad_request
from shared.service.http_protocol import BadRequestAnswer
from shared.service.process import Component, run, run_service
from shared.service.telemetry import Telemetry

_GC_THRESHOLDS = (20_000, 20, 20)


@dataclass(frozen=True)
class ServiceApp:
    """A process that serves `http` at `host` and `port` and runs `components`.

    Components start in order and stop in reverse order, within `grace_seconds`. `bad_request` answers bytes that are
    not a valid HTTP request.
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
        # Objects that exist now live as long as the process, so the collector can skip them. Most objects of a request
        # are freed by reference counting; collecting less often saves a tenth of the CPU.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_GC_THRESHOLDS)
        await run_service(
            telemetry=self.telemetry,
            http_app=self.http,
            host=self.host,
            port=self.port,
            components=self.components,
            grace_seconds=self.grace_seconds,
            bad_request=self.bad_request,
        )
