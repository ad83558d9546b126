"""`python -m shared.messaging.operate.dlq list|show|replay|drop`: what operators do with dead letters."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from aiokafka.errors import KafkaError
from rich.console import Console
from rich.table import Table

from shared.messaging.connection import NoBrokerAddress, settings_of_running_stack
from shared.messaging.errors import MessageTooLarge, PublishFailed
from shared.messaging.operate.dead_letter_book import (
    Letter,
    NoBody,
    drop,
    letters_of,
    replay,
    source_topic_named,
    topics_with_dead_letters,
)
from shared.messaging.publish import dead_letters as names
from shared.messaging.publish.producer import EventProducer
from shared.messaging.settings import KafkaSettings

T = TypeVar("T")

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Dead letters: list, show, replay, drop.")
out, err = Console(), Console(stderr=True)

TopicOption = Annotated[str | None, typer.Option("--topic", help="Source topic; all topics when not given.")]
OffsetOption = Annotated[str | None, typer.Option("--offset", help="Place in the dead-letter topic: 17, or 0/17.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


@app.command("list")
def list_letters(
    topic: TopicOption = None,
    everything: Annotated[bool, typer.Option("--all", help="Also what was replayed or dropped.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Shows the dead letters that wait for somebody."""
    letters = [letter for letter in _run(_load(topic)) if everything or letter.resolution is None]
    if as_json:
        _print_json([_summary(letter) for letter in letters])
        return
    table = Table("topic", "place", "source", "error", "detail", "attempts", "failed at", "state")
    for letter in letters:
        why = letter.why
        source = f"{why.get(names.SOURCE_PARTITION)}/{why.get(names.SOURCE_OFFSET)}"
        told = (why.get(name, "") for name in (names.ERROR_CLASS, names.ERROR_DETAIL, names.ATTEMPTS, names.FAILED_AT))
        table.add_row(letter.source.name, letter.place, source, *told, letter.resolution or "open")
    out.print(table if letters else "No dead letters.")


@app.command()
def show(topic: TopicOption = None, offset: OffsetOption = None, as_json: JsonOption = False) -> None:
    """Shows letters with their original headers and body."""
    letters = _run(_chosen(topic, offset))
    documents = [_summary(letter) | _content(letter) for letter in letters]
    if as_json:
        _print_json(documents)
        return
    for document in documents:
        for name, value in document.items():
            out.print(f"[bold]{name}[/bold]", json.dumps(value, ensure_ascii=False), soft_wrap=True, highlight=False)
        out.rule()


@app.command("replay")
def replay_letters(topic: TopicOption = None, offset: OffsetOption = None, as_json: JsonOption = False) -> None:
    """Sends the original records to their topics again; without --offset, all that are open."""
    _report(_run(_each(topic, offset, replay)), as_json)


@app.command("drop")
def drop_letters(
    topic: TopicOption = None,
    offset: OffsetOption = None,
    everything: Annotated[bool, typer.Option("--all", help="All that are open, when no --offset is given.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Notes that nothing more is to be done about letters."""
    if offset is None and not everything:
        _fail("say which: --offset, or --all for all that are open")
    _report(_run(_each(topic, offset, drop)), as_json)


async def _load(topic: str | None) -> list[Letter]:
    settings = settings_of_running_stack()
    try:
        sources = [source_topic_named(topic)] if topic else topics_with_dead_letters()
    except KeyError:
        _fail(
            f"no dead letters are kept for {topic}; there are {', '.join(t.name for t in topics_with_dead_letters())}"
        )
    found = await asyncio.gather(*(letters_of(settings, source) for source in sources))
    return [letter for letters in found for letter in letters]


async def _chosen(topic: str | None, offset: str | None) -> list[Letter]:
    letters = await _load(topic)
    if offset is None:
        return [letter for letter in letters if letter.resolution is None]
    place = offset if "/" in offset else f"0/{offset}"
    chosen = [letter for letter in letters if letter.place == place]
    if not chosen:
        _fail(f"no dead letter at {place}")
    return chosen


async def _each(
    topic: str | None, offset: str | None, action: Callable[[EventProducer, Letter], Awaitable[None]]
) -> list[dict[str, Any]]:
    letters = await _chosen(topic, offset)
    settings: KafkaSettings = settings_of_running_stack()
    producer = EventProducer(settings, source="operators")
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
        _print_json(done)
    for item in [] if as_json else done:
        out.print(f"{item['topic']} {item['place']}: {'done' if item['done'] else item['error']}", highlight=False)
    if not done and not as_json:
        out.print("Nothing to do.")
    if any(not item["done"] for item in done):
        raise typer.Exit(1)


def _summary(letter: Letter) -> dict[str, Any]:
    why = {name.removeprefix(names.HEADER_PREFIX): value for name, value in letter.why.items()}
    return {"topic": letter.source.name, "place": letter.place, "state": letter.resolution or "open"} | why


def _content(letter: Letter) -> dict[str, Any]:
    headers = {name: content.decode(errors="replace") for name, content in letter.headers}
    key = letter.key.decode(errors="replace") if letter.key is not None else None
    body = letter.value.decode(errors="replace") if letter.value is not None else None
    return {"key": key, "headers": headers, "body": body if letter.has_body else None}


def _print_json(document: Any) -> None:
    out.print(json.dumps(document, ensure_ascii=False), soft_wrap=True, markup=False, highlight=False)


def _fail(reason: str) -> NoReturn:
    err.print(reason, style="red", highlight=False, soft_wrap=True)
    raise typer.Exit(2)


def _run(work: Coroutine[Any, Any, T]) -> T:
    try:
        return asyncio.run(work)
    except NoBrokerAddress as error:
        _fail(str(error))
    except (KafkaError, PublishFailed, OSError, TimeoutError) as error:
        _fail(f"the broker does not answer ({type(error).__name__})")


if __name__ == "__main__":
    app()
