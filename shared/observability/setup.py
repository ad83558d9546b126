"""One call that sets a process up to be observed."""

from collections.abc import Callable

from shared.observability import error_reports, tracing
from shared.observability.health import Health
from shared.observability.logs import configure_logs, get_logger
from shared.observability.settings import ObservabilitySettings

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
