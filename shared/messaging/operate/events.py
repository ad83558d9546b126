"""`python -m shared.messaging.operate.events TOPIC`: follows a topic, readably."""

import asyncio
import contextlib
import json
from datetime import UTC, datetime
from typing import Annotated, Any, NoReturn

import typer
from aiokafka import ConsumerRecord
from aiokafka.errors import KafkaError
from rich.console import Console

from shared.contracts.contract import format_utc
from shared.contracts.topics import Topic, all_topics, topic_named
from shared.messaging.connection import NoBrokerAddress, settings_of_running_stack
from shared.messaging.operate.topic_reading import follow

out, err = Console(), Console(stderr=True)


def main(
    topic: Annotated[str | None, typer.Argument(help="The topic, dead-letter topics included.")] = None,
    from_beginning: Annotated[bool, typer.Option("--from-beginning", help="What is there, then what comes.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="End after so many events.")] = None,
) -> None:
    """Shows the events of a topic as they come, one a line; Ctrl-C ends it. Without a topic: which there are."""
    if topic is None:
        for known in all_topics():
            _line(f"{known.name:<32} {known.description}".rstrip())
        return
    try:
        followed = topic_named(topic)
    except KeyError:
        _fail(f"no topic {topic}; there are {', '.join(known.name for known in all_topics())}")
    try:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(_follow(followed, from_beginning, as_json, limit))
    except NoBrokerAddress as error:
        _fail(str(error))
    except (KafkaError, OSError, TimeoutError) as error:
        _fail(f"the broker does not answer ({type(error).__name__})")


async def _follow(topic: Topic, from_beginning: bool, as_json: bool, limit: int | None) -> None:
    shown = 0
    settings = settings_of_running_stack()
    more = "" if from_beginning else ", ARGS=--from-beginning reads from the start"
    err.print(f"following {topic.name}; Ctrl-C ends{more}", style="dim", highlight=False, soft_wrap=True)
    async with contextlib.aclosing(follow(settings, topic, from_beginning=from_beginning)) as records:
        async for record in records:
            event = _event(record)
            if as_json:
                _line(json.dumps(event, ensure_ascii=False))
            else:
                _line(_readable(event))
            shown += 1
            if limit is not None and shown >= limit:
                return


def _event(record: ConsumerRecord) -> dict[str, Any]:
    """A record as JSON-ready values; a body that is not JSON as text."""
    body: Any = None
    if record.value is not None:
        try:
            body = json.loads(record.value)
        except ValueError:
            body = record.value.decode(errors="replace")
    return {
        "partition": record.partition,
        "offset": record.offset,
        "time": format_utc(datetime.fromtimestamp(record.timestamp / 1000, UTC)),
        "key": record.key.decode(errors="replace") if record.key is not None else None,
        "headers": {name: content.decode(errors="replace") for name, content in record.headers},
        "data": body,
    }


def _readable(event: dict[str, Any]) -> str:
    headers = event["headers"]
    about = "".join(
        f"  {name}={headers[header]}"
        for name, header in (("from", "ce_source"), ("subject", "ce_subject"), ("error", "dlq_error_class"))
        if header in headers
    )
    place = f"{event['partition']}/{event['offset']}"
    return f"{event['time']}  {place}  key={event['key']}{about}  {json.dumps(event['data'], ensure_ascii=False)}"


def _line(text: str) -> None:
    """One line, however long it is: a terminal may fold it, a file or a pipe gets it whole."""
    out.print(text, markup=False, highlight=False, soft_wrap=True)


def _fail(reason: str) -> NoReturn:
    err.print(reason, style="red", highlight=False, soft_wrap=True)
    raise typer.Exit(2)


if __name__ == "__main__":
    typer.run(main)
