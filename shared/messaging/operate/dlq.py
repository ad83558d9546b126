"""Command to list, show, replay and drop dead letters: `python -m shared.messaging.operate.dlq --help`."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import typer
from rich.table import Table

from shared.messaging.errors import MessageTooLarge, PublishFailed
from shared.messaging.operate.command_line import broker_settings, fail, out, print_json, run
from shared.messaging.operate.letters import (
    Letter,
    NoBody,
    drop,
    letters_of,
    replay,
    source_topic_named,
    topics_with_dead_letters,
)
from shared.messaging.publish import dead_letters as headers
from shared.messaging.publish.producer import EventProducer

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Dead letters: list, show, replay, drop.")

TopicOption = Annotated[str | None, typer.Option("--topic", help="Source topic; default: all topics.")]
OffsetOption = Annotated[str | None, typer.Option("--offset", help="Place in the dead-letter topic: 17, or 0/17.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


@app.command("list")
def list_letters(
    topic: TopicOption = None,
    everything: Annotated[bool, typer.Option("--all", help="Include replayed and dropped letters.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Lists open dead letters."""
    letters = [letter for letter in run(_load(topic)) if everything or letter.resolution is None]
    if as_json:
        print_json([_summary(letter) for letter in letters])
        return
    table = Table("topic", "place", "source", "error", "detail", "attempts", "failed at", "state")
    shown = (headers.ERROR_CLASS, headers.ERROR_DETAIL, headers.ATTEMPTS, headers.FAILED_AT)
    for letter in letters:
        why = letter.why
        source = f"{why.get(headers.SOURCE_PARTITION)}/{why.get(headers.SOURCE_OFFSET)}"
        cells = (why.get(name, "") for name in shown)
        table.add_row(letter.source.name, letter.place, source, *cells, letter.resolution or "open")
    out.print(table if letters else "No dead letters.")


@app.command()
def show(topic: TopicOption = None, offset: OffsetOption = None, as_json: JsonOption = False) -> None:
    """Shows letters with their original headers and body."""
    letters = run(_chosen(topic, offset))
    documents = [_summary(letter) | _content(letter) for letter in letters]
    if as_json:
        print_json(documents)
        return
    for document in documents:
        for name, value in document.items():
            out.print(f"[bold]{name}[/bold]", json.dumps(value, ensure_ascii=False), soft_wrap=True, highlight=False)
        out.rule()


@app.command("replay")
def replay_letters(topic: TopicOption = None, offset: OffsetOption = None, as_json: JsonOption = False) -> None:
    """Publishes the original records to their topics again; without --offset, all open letters."""
    _report(run(_each(topic, offset, replay)), as_json)


@app.command("drop")
def drop_letters(
    topic: TopicOption = None,
    offset: OffsetOption = None,
    everything: Annotated[bool, typer.Option("--all", help="Without --offset: all open letters.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Marks letters as done without a replay."""
    if offset is None and not everything:
        fail("say which: --offset, or --all for all that are open")
    _report(run(_each(topic, offset, drop)), as_json)


async def _load(topic: str | None) -> list[Letter]:
    settings = broker_settings()
    try:
        sources = [source_topic_named(topic)] if topic else topics_with_dead_letters()
    except KeyError:
        fail(f"no dead letters are kept for {topic}; there are {', '.join(t.name for t in topics_with_dead_letters())}")
    found = await asyncio.gather(*(letters_of(settings, source) for source in sources))
    return [letter for letters in found for letter in letters]


async def _chosen(topic: str | None, offset: str | None) -> list[Letter]:
    letters = await _load(topic)
    if offset is None:
        return [letter for letter in letters if letter.resolution is None]
    place = offset if "/" in offset else f"0/{offset}"
    chosen = [letter for letter in letters if letter.place == place]
    if not chosen:
        fail(f"no dead letter at {place}")
    return chosen


async def _each(
    topic: str | None, offset: str | None, action: Callable[[EventProducer, Letter], Awaitable[None]]
) -> list[dict[str, Any]]:
    """Applies `action` to the chosen letters. Returns one entry per letter, with the error if it failed."""
    letters = await _chosen(topic, offset)
    producer = EventProducer(broker_settings(), source="operators")
    await producer.start()
    done: list[dict[str, Any]] = []
    try:
        for letter in letters:
            error: str | None = None
            try:
                await action(producer, letter)
            except (NoBody, MessageTooLarge, PublishFailed) as problem:
                error = str(problem)
            done.append({"topic": letter.source.name, "place": letter.place, "done": error is None, "error": error})
    finally:
        await producer.stop(5)
    return done


def _report(done: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json(done)
    for item in [] if as_json else done:
        out.print(f"{item['topic']} {item['place']}: {'done' if item['done'] else item['error']}", highlight=False)
    if not done and not as_json:
        out.print("Nothing to do.")
    if any(not item["done"] for item in done):
        raise typer.Exit(1)


def _summary(letter: Letter) -> dict[str, Any]:
    why = {name.removeprefix(headers.HEADER_PREFIX): value for name, value in letter.why.items()}
    return {"topic": letter.source.name, "place": letter.place, "state": letter.resolution or "open"} | why


def _content(letter: Letter) -> dict[str, Any]:
    return {
        "key": letter.key.decode(errors="replace") if letter.key is not None else None,
        "headers": {name: content.decode(errors="replace") for name, content in letter.headers},
        "body": letter.value.decode(errors="replace") if letter.value is not None and letter.has_body else None,
    }


if __name__ == "__main__":
    app()
