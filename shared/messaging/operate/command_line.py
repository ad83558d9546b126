"""What the operator commands share: the broker's settings, output, and errors as one line on stderr."""

import asyncio
import json
from collections.abc import Coroutine
from typing import Any, NoReturn, TypeVar

import typer
from aiokafka.errors import KafkaError
from rich.console import Console

from shared.messaging.errors import PublishFailed
from shared.messaging.settings import KafkaSettings

WRONG_USE_EXIT = 2

ResultT = TypeVar("ResultT")

out, err = Console(), Console(stderr=True)


def broker_settings() -> KafkaSettings:
    """The settings of the broker to work on. There is no default address: a command could change the wrong broker."""
    settings = KafkaSettings()
    if "kafka_bootstrap_servers" not in settings.model_fields_set:
        fail("KAFKA_BOOTSTRAP_SERVERS is not set: it names the broker as host:port")
    return settings


def run(work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Returns the result of `work`. Ends the process with exit code 2 when the broker does not respond."""
    try:
        return asyncio.run(work)
    except (KafkaError, PublishFailed, OSError, TimeoutError) as error:
        fail(f"the broker does not answer ({type(error).__name__})")


def fail(reason: str) -> NoReturn:
    """Prints `reason` and ends the process with exit code 2."""
    err.print(reason, style="red", highlight=False, soft_wrap=True)
    raise typer.Exit(WRONG_USE_EXIT)


def print_line(text: str) -> None:
    """Prints one line without folding it, so that a file or a pipe gets it whole."""
    out.print(text, markup=False, highlight=False, soft_wrap=True)


def print_json(document: Any) -> None:
    print_line(json.dumps(document, ensure_ascii=False))
