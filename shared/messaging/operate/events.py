"""Command that prints the events of a topic as they arrive: `python -m shared.messaging.operate.events TOPIC`."""

import contextlib
import json
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from aiokafka import ConsumerRecord

from shared.contracts.contract import format_utc
from shared.contracts.topics import Topic, all_topics, topic_named
from shared.messaging.operate.command_line import broker_settings, err, fail, print_json, print_line, run
from shared.messaging.operate.topic_reading import follow


def main(
    topic: Annotated[str | None, typer.Argument(help="The topic; may be a dead-letter topic.")] = None,
    from_beginning: Annotated[bool, typer.Option("--from-beginning", help="Start with the oldest event.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="End after that many events.")] = None,
) -> None:
    """Prints the events of a topic as they arrive, one per line; Ctrl-C ends it. Without a topic, lists all topics."""
    if topic is None:
        for known in all_topics():
            print_line(f"{known.name:<32} {known.description}".rstrip())
        return
    try:
        followed = topic_named(topic)
    except KeyError:
        fail(f"no topic {topic}; there are {', '.join(known.name for known in all_topics())}")
    with contextlib.suppress(KeyboardInterrupt):
        run(_follow(followed, from_beginning, as_json, limit))


async def _follow(topic: Topic, from_beginning: bool, as_json: bool, limit: int | None) -> None:
    shown = 0
    settings = broker_settings()
    more = "" if from_beginning else ", --from-beginning starts with the oldest event"
    err.print(f"following {topic.name}; Ctrl-C ends{more}", style="dim", highlight=False, soft_wrap=True)
    async with contextlib.aclosing(follow(settings, topic, from_beginning=from_beginning)) as records:
        async for record in records:
            event = _event(record)
            if as_json:
                print_json(event)
            else:
                print_line(_readable(event))
            shown += 1
            if limit is not None and shown >= limit:
                return


def _event(record: ConsumerRecord) -> dict[str, Any]:
    """A record as JSON-ready values; a body that is not JSON becomes text."""
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


if __name__ == "__main__":
    typer.run(main)
