"""Sets up logs, traces, error reports and health checks of a process."""

import asyncio
from collections.abc import Awaitable, Callable

from shared.observability import error_reports, tracing
from shared.observability.logs import configure_logs, get_logger
from shared.service.settings import ObservabilitySettings

CHECK_SECONDS = 2.0

Check = Callable[[], Awaitable[object]]


class Unhealthy(Exception):
    """Raised by a check; its text is shown to anybody who asks for readiness, so it holds no address or secret."""


class Health:
    """Live as soon as it answers; ready once started, while not draining, and when every check passes."""

    def __init__(self) -> None:
        self._checks: dict[str, Check] = {}
        self._started = False
        self._draining = False

    @property
    def draining(self) -> bool:
        """Whether the process has been asked to end."""
        return self._draining

    def add_check(self, name: str, check: Check) -> None:
        """`check` is awaited at each readiness question, for 2 s at most, and raises when unhealthy."""
        self._checks[name] = check

    def mark_started(self) -> None:
        self._started = True

    def mark_draining(self) -> None:
        self._draining = True

    async def readiness(self) -> tuple[bool, dict[str, str]]:
        """Whether to send work here, and per check `ok` or the reason."""
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
        except Unhealthy as error:
            return str(error) or "unhealthy"
        except Exception as error:
            # Only the class: messages of drivers quote addresses, sometimes with a password in them.
            return type(error).__name__
        return "ok"


FATAL_EXIT = 70

_log = get_logger("process")


def tag_user(user_ref: str | None) -> None:
    """Names whom the current task works for, in error reports. Takes the keyed hash, never the plain id."""
    error_reports.tag_user(user_ref)


class Telemetry:
    """What a service holds on to: its name, its health, and the way to end the process when it cannot go on."""

    def __init__(self, service: str, settings: ObservabilitySettings) -> None:
        self.service = service
        self.health = Health()
        self.metrics_token = settings.metrics_token
        self.fatal_message: str | None = None
        self._on_fatal: Callable[[], None] | None = None

    def fatal(self, message: str) -> None:
        """Ends the process with exit code 70 after a short drain. Callable from any thread; the first call counts."""
        if self.fatal_message is not None:
            return
        self.fatal_message = message
        _log.critical("fatal", reason=message)
        if self._on_fatal is not None:
            self._on_fatal()

    def when_fatal(self, callback: Callable[[], None]) -> None:
        """`callback` runs at the call of `fatal`, or at once if that was already."""
        self._on_fatal = callback
        if self.fatal_message is not None:
            callback()

    def flush(self) -> None:
        """Sends buffered spans and error reports. Blocks for some seconds at most."""
        tracing.shutdown_tracing()
        error_reports.flush()


def setup(service: str, settings: ObservabilitySettings) -> Telemetry:
    """Sets up logs, tracing and error reports of this process, `service` being its name in all of them."""
    reporter = error_reports.configure_error_reports(service, settings.sentry_dsn)
    configure_logs(service, settings.log_level, reporter)
    if tracing.configure_tracing(service, settings.otel_exporter_otlp_endpoint, settings.trace_sample_ratio):
        tracing.instrument_clients()
    return Telemetry(service, settings)
