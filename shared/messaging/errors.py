"""Exceptions of messaging. A message handler raises Transient or Unprocessable to choose how a failure is treated."""


class Transient(Exception):
    """A later attempt may succeed, for example when a store is down: retried with backoff until the deadline."""


class Unprocessable(Exception):
    """No attempt can succeed: the message is dead-lettered at once. The text must not quote the payload."""


class PublishFailed(Transient):
    """The broker did not confirm a record in time; the record may or may not have been written."""


class MessageTooLarge(Unprocessable):
    """The record exceeds the size limit of its topic; nothing was sent."""


class Undecodable(Exception):
    """The record is not a valid CloudEvent of its topic. `reason` names fields and rules, never values."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class NotReading(Exception):
    """The consumer is not a member of its group."""
