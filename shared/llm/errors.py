"""How a call of the model can fail. Details are for the end user's eyes: no prompt, no answer, no address in them."""

from shared.llm.usage import ModelUsage


class ModelError(Exception):
    """A call that gave no usable answer. `usage` is what it used all the same."""

    code = "model_error"

    def __init__(self, detail: str, usage: ModelUsage) -> None:
        super().__init__(detail)
        self.detail = detail
        self.usage = usage


class ModelUnavailable(ModelError):
    """The model cannot be asked: it is failing or out of reach, or its server will not take the request."""

    code = "model_unavailable"


class ModelTimeout(ModelUnavailable):
    """The model did not answer in time, or the deadline left no time to ask."""


class ModelRefused(ModelError):
    """The model declined to answer this."""

    code = "model_refused"


class ModelAnswerInvalid(ModelError):
    """The model answered, and once more after a hint, but not with what was asked for."""

    code = "model_answer_invalid"
