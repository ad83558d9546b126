"""Exceptions of a model call. Their details are shown to end users: no prompt, answer or address in them."""

from shared.llm.usage import ModelUsage


class ModelError(Exception):
    """A call that returned no usable answer. `usage` is what it used nevertheless."""

    code = "model_error"

    def __init__(self, detail: str, usage: ModelUsage) -> None:
        super().__init__(detail)
        self.detail = detail
        self.usage = usage


class ModelUnavailable(ModelError):
    """The server is failing, unreachable or rejects the request."""

    code = "model_unavailable"


class ModelTimeout(ModelUnavailable):
    """The server did not answer in time, or the deadline left no time for a request."""


class ModelRefused(ModelError):
    """The model declined to answer this request."""

    code = "model_refused"


class ModelAnswerInvalid(ModelError):
    """The model answered twice, the second time after a hint, but neither answer was usable."""

    code = "model_answer_invalid"
