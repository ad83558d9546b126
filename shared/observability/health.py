"""Whether a process lives and whether it should be given work."""

import asyncio
from collections.abc import Awaitable, Callable

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
