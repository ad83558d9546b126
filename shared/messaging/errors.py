"""What a handler raises to say how a failed message is to be treated."""


class Transient(Exception):
    """It may work later (a store or a broker is out): retried with backoff until the message's deadline."""


class Unprocessable(Exception):
    """It will never work: the message is dead-lettered at once. The text must hold nothing of the payload."""


class PublishFailed(Transient):
    """The broker did not confirm a record in time; it may or may not have been written."""


class MessageTooLarge(Unprocessable):
    """The record is over its topic's limit; nothing was sent."""


class Undecodable(Exception):
    """The record is not the CloudEvent that its topic promises. `reason` names fields and rules, never values."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class NotReading(Exception):
    """A consumer is no member of its group at the moment."""
