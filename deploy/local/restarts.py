"""How long to wait before a process that died is started again."""

_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 5.0
_CRASH_LOOP_AFTER = 8
_CRASH_LOOP_PAUSE_SECONDS = 15.0
_STEADY_AFTER_SECONDS = 20.0


class RestartPauses:
    """Fast at first, slower with each quick death, slow and steady in a crash loop; a steady run starts over."""

    def __init__(self) -> None:
        self._quick_deaths = 0

    @property
    def crash_loop(self) -> bool:
        return self._quick_deaths >= _CRASH_LOOP_AFTER

    def after_death(self, ran_seconds: float) -> float:
        """The pause in seconds before the next start of a process that ran for `ran_seconds`."""
        if ran_seconds >= _STEADY_AFTER_SECONDS:
            self._quick_deaths = 0
        self._quick_deaths += 1
        if self.crash_loop:
            return _CRASH_LOOP_PAUSE_SECONDS
        pause: float = _FIRST_PAUSE_SECONDS * 2 ** (self._quick_deaths - 1)
        return min(pause, _LONGEST_PAUSE_SECONDS)
