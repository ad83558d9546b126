"""Delivers one record to its handler: decodes it, retries, and at last gives it up or dead-letters it."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from shared.contracts.topics import Topic
from shared.contracts.upgrade_tasks import GivenUp, GiveUpReason
from shared.messaging.cloudevents import Envelope, decoder
from shared.messaging.consume.work import Work
from shared.messaging.errors import Transient, Undecodable, Unprocessable
from shared.messaging.publish.dead_letters import DeadLetters
from shared.messaging.retries import ATTEMPTS_AT_UNKNOWN_ERRORS, exponential_pause
from shared.messaging.settings import KafkaSettings
from shared.observability.logs import get_logger
from shared.observability.metrics import RETRIES
from shared.observability.tracing import span_from_traceparent

_GIVE_UP_ATTEMPTS_AT_UNKNOWN_ERRORS = 10
_GIVE_UP_WITHIN_SECONDS = 30.0

Handler = Callable[[Envelope], Awaitable[None]]
GiveUp = Callable[[Envelope, GivenUp], Awaitable[None]]

log = get_logger(__name__)


class Abandoned(Exception):
    """The partition was revoked before the message was finished; the message will be delivered again."""


class Overdue(Exception):
    """The handler was still running when the message's time limit was over."""


class Delivery:
    """Delivers the records of one topic. Call `deliver` in a task per record, since it waits between retries.

    - Transient, and a handler cancelled at its time limit: retried until the deadline, or without one until the
      setting `stage_retry_budget_seconds` is spent.
    - Unprocessable at once, any other error after three attempts: dead-lettered, then `give_up` is called.
    - Out of time: `give_up` is called; without it, or for a topic without deadlines, the record is dead-lettered.
    """

    def __init__(
        self,
        *,
        settings: KafkaSettings,
        topic: Topic,
        handler: Handler,
        give_up: GiveUp | None,
        dead_letters: DeadLetters,
    ) -> None:
        self._topic = topic
        self._decode = decoder(topic)
        self._handler = handler
        self._give_up_handler = give_up
        self._dead_letters = dead_letters
        self._has_deadline = topic.model is not None and "deadline" in topic.model.model_fields
        self._retry_budget = settings.stage_retry_budget_seconds
        self._time_limit = settings.stage_time_limit_seconds
        self._span_name = f"{topic.name} process"
        self._span_attributes = {"messaging.system": "kafka", "messaging.destination.name": topic.name}
        self._limits: dict[asyncio.Task[None], float] = {}
        self._overdue: set[asyncio.Task[None]] = set()

    async def deliver(self, work: Work) -> None:
        """Returns when the record's offset may be committed. Raises Abandoned when its partition was revoked."""
        try:
            envelope = self._decode(work.record.value, work.record.headers)
            if envelope.traceparent is None:
                await self._handle_until_done(work, envelope)
                return
            with span_from_traceparent(self._span_name, envelope.traceparent, self._span_attributes):
                await self._handle_until_done(work, envelope)
        except Abandoned:
            raise
        except Exception as error:
            # Undecodable, or valid by the schema but not usable, as a deadline in the year 1.
            await self._dead_letter(work, error, 1)

    def cancel_overdue(self) -> None:
        """Cancels handlers past their time limit. To be called several times a second: cheaper than a timer each."""
        now = time.time()
        for task, limit in list(self._limits.items()):
            if now > limit:
                del self._limits[task]
                self._overdue.add(task)
                task.cancel()

    async def _handle_until_done(self, work: Work, envelope: Envelope) -> None:
        now = time.time()
        retry_until = envelope.data.deadline.timestamp() if self._has_deadline else now + self._retry_budget  # type: ignore[attr-defined]
        attempts = failures = 0
        while True:
            if now >= retry_until and self._has_deadline:
                await self._out_of_time(work, envelope, attempts, None)
                return
            attempts += 1
            error = await self._attempt(envelope, retry_until if self._has_deadline else now + self._time_limit)
            if error is None:
                return
            if isinstance(error, Transient | Overdue):
                pause = exponential_pause(attempts)
                if time.time() + pause >= retry_until:
                    await self._out_of_time(work, envelope, attempts, error)
                    return
            else:
                failures += 1
                pause = exponential_pause(failures)
                if isinstance(error, Unprocessable) or failures >= ATTEMPTS_AT_UNKNOWN_ERRORS:
                    await self._unprocessable(work, envelope, attempts, error)
                    return
            await self._pause(work, error, attempts, pause)
            now = time.time()

    async def _attempt(self, envelope: Envelope, limit: float) -> Exception | None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 -- always inside a task
        self._limits[task] = limit
        error: Exception
        try:
            await self._handler(envelope)
            return None
        except Exception as raised:
            error = raised
        except asyncio.CancelledError:
            if task not in self._overdue:
                raise
            error = Overdue("the handler exceeded its time limit")
        finally:
            self._limits.pop(task, None)
        if task in self._overdue:
            self._overdue.discard(task)
            task.uncancel()
        return error

    async def _pause(self, work: Work, error: Exception, attempts: int, seconds: float) -> None:
        name = type(error).__name__
        RETRIES.labels(topic=self._topic.name, error_type=name).inc()
        # The text of other exceptions may quote the payload.
        detail = str(error) if isinstance(error, Transient) else name
        log.info("message_retried", topic=self._topic.name, attempts=attempts, error_class=name, detail=detail)
        await asyncio.sleep(seconds)
        if work.abandoned:
            raise Abandoned

    async def _out_of_time(self, work: Work, envelope: Envelope, attempts: int, error: Exception | None) -> None:
        last = f"; last: {type(error).__name__}" if error is not None else ""
        detail = f"not done after {attempts} attempts{last}" if attempts else "arrived after its deadline"
        if self._give_up_handler is None or not self._has_deadline:
            await self._dead_letter(work, error or Overdue("arrived after its deadline"), attempts)
        await self._give_up(work, envelope, GiveUpReason.DEADLINE, detail)

    async def _unprocessable(
        self,
        work: Work,
        envelope: Envelope,
        attempts: int,
        error: Exception,
    ) -> None:
        await self._dead_letter(work, error, attempts)
        detail = f"{type(error).__name__} after {attempts} attempts"
        await self._give_up(work, envelope, GiveUpReason.UNPROCESSABLE, detail, buried=True)

    async def _give_up(
        self,
        work: Work,
        envelope: Envelope,
        reason: GiveUpReason,
        detail: str,
        buried: bool = False,
    ) -> None:
        """Calls the give-up handler until it succeeds. If it keeps failing, the record is dead-lettered."""
        if self._give_up_handler is None:
            return
        given_up = GivenUp(stage=self._topic.owner, reason=reason, detail=detail)
        log.warning("message_given_up", topic=self._topic.name, reason=reason.value, detail=detail)
        attempts = failures = 0
        while True:
            attempts += 1
            try:
                async with asyncio.timeout(_GIVE_UP_WITHIN_SECONDS):
                    await self._give_up_handler(envelope, given_up)
                return
            except (Transient, TimeoutError) as error:
                last: Exception = error
            except Exception as error:
                failures += _GIVE_UP_ATTEMPTS_AT_UNKNOWN_ERRORS if isinstance(error, Unprocessable) else 1
                last = error
            log.error("give_up_failed", topic=self._topic.name, attempts=attempts, error_class=type(last).__name__)
            if failures >= _GIVE_UP_ATTEMPTS_AT_UNKNOWN_ERRORS:
                if not buried:
                    await self._dead_letter(work, last, attempts)
                return
            await asyncio.sleep(exponential_pause(attempts))
            if work.abandoned:
                raise Abandoned

    async def _dead_letter(self, work: Work, error: Exception, attempts: int) -> None:
        known = isinstance(error, Undecodable | Transient | Unprocessable | Overdue)
        detail = str(error) if known else "unexpected error in the handler"
        if not known:
            log.error("handler_failed", topic=self._topic.name, exc_info=error)
        if not await self._dead_letters.write(
            work.record,
            error_class=type(error).__name__,
            detail=detail,
            attempts=attempts,
            keep_trying=lambda: not work.abandoned,
        ):
            raise Abandoned
