"""Logs, traces, error reports and health checks of a process, and the way to end it after a fatal error."""

import asyncio
from collections.abc import Awaitable, Callable

from shared.observability import error_reports, tracing
from shared.observability.logs import configure_logs, get_logger
from shared.service.settings import ObservabilitySettings

FATAL_EXIT = 70
CHECK_SECONDS = 2.0

Check = Callable[[], Awaitable[object]]

log = get_logger(__name__)


def setup(service: str, settings: ObservabilitySettings) -> "Telemetry":
    """Configures logs, tracing and error reports of this process. `service` is its name in all of them."""
    reporter = error_reports.configure_error_reports(service, settings.sentry_dsn)
    configure_logs(service, settings.log_level, reporter)
    if tracing.configure_tracing(service, settings.otel_exporter_otlp_endpoint, settings.trace_sample_ratio):
        tracing.instrument_clients()
    return Telemetry(service, settings)


class Telemetry:
    """The service's name, its health, and the switch that ends the process when it cannot go on."""

    def __init__(self, service: str, settings: ObservabilitySettings) -> None:
        self.service = service
        self.health = Health()
        self.metrics_token = settings.metrics_token
        self.fatal_message: str | None = None
        self._on_fatal: Callable[[], None] | None = None

    def fatal(self, message: str) -> None:
        """Ends the process with exit code 70 after a short drain. Thread-safe; calls after the first have no effect."""
        if self.fatal_message is not None:
            return
        self.fatal_message = message
        log.critical("fatal", reason=message)
        if self._on_fatal is not None:
            self._on_fatal()

    def when_fatal(self, callback: Callable[[], None]) -> None:
        """Registers what `fatal` calls. Calls it at once if `fatal` was called before."""
        self._on_fatal = callback
        if self.fatal_message is not None:
            callback()

    def flush(self) -> None:
        """Sends buffered spans and error reports. Blocks for several seconds at most."""
        tracing.shutdown_tracing()
        error_reports.flush()


class Health:
    """Liveness and readiness. A process is ready when it has started, is not draining and all checks pass."""

    def __init__(self) -> None:
        self._checks: dict[str, Check] = {}
        self._started = False
        self._draining = False

    @property
    def draining(self) -> bool:
        """Whether the process is shutting down."""
        return self._draining

    def add_check(self, name: str, check: Check) -> None:
        """Adds a check, which raises when unhealthy. Each readiness request awaits it for up to 2 s."""
        self._checks[name] = check

    def mark_started(self) -> None:
        self._started = True

    def mark_draining(self) -> None:
        self._draining = True

    async def readiness(self) -> tuple[bool, dict[str, str]]:
        """Returns whether the process is ready, and by check `ok` or the reason why not."""
        process = "draining" if self._draining else "ok" if self._started else "starting"
        reasons = await asyncio.gather(*(self._run(check) for check in self._checks.values()))
        checks = {"process": process, **dict(zip(self._checks, reasons, strict=True))}
        return all(reason == "ok" for reason in checks.values()), checks

    @staticmethod
    async def _run(check: Check) -> str:
        try:
            await asyncio.wait_for(check(), CHECK_SECONDS)
        except TimeoutError:
            return "timeout"
        except Exception as error:
            # Only the class: messages of drivers quote addresses, sometimes with a password.
            return type(error).__name__
        return "ok"
