"""How many upgrades one gateway process accepts, and how long a client waits until its own is on disk."""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from sys import executable
from typing import Any

from redis.asyncio import Redis

from benchmarks.brokers import KAFKA, Broker, running
from benchmarks.http_load import post_for
from benchmarks.machine import cpu_seconds, hold_to_one_core
from benchmarks.pairs import BOTH, Measured, Pair, Row, middle, paired, percentile, ratios
from benchmarks.side_process import SideProcess, side
from deploy.local.ports import HOST, free_port
from deploy.local.processes import ServerCommand
from deploy.local.readiness import http_ready, port_answers
from deploy.local.servers import ServerProcess, start_valkey
from services.gateway.identity.api_keys import DEMO_TENANT_ID
from shared.contracts.contract import new_id
from shared.contracts.quota import Plan
from shared.messaging.topics import create_topics
from tests.component.gateway_world import API_KEY, TOKEN, VAULT_KEY, Siblings

_PROJECT = Path(__file__).parent.parent
_SECONDS = 3.0
_WARM_UP_SECONDS = 0.5
_SIDES = (
    "A is one gateway process, asked with `Prefer: respond-async`: it answers when the accepted record is on disk. "
    "B is FastAPI on uvicorn whose every request does the same steps one after another: looks up and compares the key, "
    "validates, redacts, runs the gateway's admission script, inserts with its own commit, publishes with acks=all "
    "and does the XADD. A conversation of 1 KB; the client is a process of its own"
)


def _rate(connections: int) -> Row:
    return Row(f"gateway-accept-{connections}", "requests/s", f"{_SIDES}, {_connections(connections)}.")


def _per_core(connections: int) -> Row:
    sentence = "Requests per second of CPU time of the serving process, what it does in the background included"
    return Row(
        f"gateway-core-{connections}",
        "requests/CPU s",
        f"{sentence}; sides as gateway-accept-{connections}.",
        goal=1.5 if connections > 1 else None,
    )


def _durable(connections: int) -> Row:
    sentence = "The time from the request to the answer, by which the upgrade is durable"
    return Row(
        f"gateway-durable-{connections}",
        "ms, p50",
        f"{sentence}; sides as gateway-accept-{connections}.",
        better="less",
    )


def _one_core(connections: int) -> Row:
    return Row(
        f"gateway-one-core-{connections}",
        "requests/s",
        "Each server is held to one core, and B takes one request at a time: none begins before the one before it is "
        f"answered; else as gateway-accept-{connections}.",
        goal=1.5,
    )


def _connections(number: int) -> str:
    return f"{number} {'connection' if number == 1 else 'connections'}"


_CONNECTIONS = (1, 64)
_MANY = max(_CONNECTIONS)
ROWS = (
    *(row(connections) for connections in _CONNECTIONS for row in (_rate, _per_core, _durable)),
    _one_core(_MANY),
)


async def measure(kind: str, chosen: Sequence[Row]) -> list[Measured]:
    """Measures the chosen rows on one broker."""
    results: list[Measured] = []
    siblings = Siblings()
    # Nobody ends what is accepted here, so nothing that is held comes back.
    siblings.usage.set_plan(DEMO_TENANT_ID, Plan.ENTERPRISE)
    async with siblings.serving(), running(kind) as broker, await start_valkey() as valkey:
        await create_topics(broker.settings())
        async with side("benchmarks.gateway_accept:Client") as client:
            ours, plain = partial(gateway_process, broker, valkey.url, siblings), partial(_plain, broker, valkey.url)
            run = partial(_run, client=client, valkey=valkey)
            for connections in _CONNECTIONS:
                of_these = (_rate(connections), _per_core(connections), _durable(connections))
                rows = [row for row in chosen if row in of_these]
                if rows:
                    sides = (partial(run, server, connections=connections) for server in (ours, plain))
                    pairs = await paired(*sides)
                    results += [_measured(kind, row, connections, pairs) for row in rows]
            if (row := _one_core(_MANY)) in chosen:
                servers = (ours, partial(plain, one_at_a_time=True))
                sides = (partial(run, server, connections=_MANY, one_core=True) for server in servers)
                results.append(_measured(kind, row, _MANY, await paired(*sides)))
    return results


async def _run(
    server: Callable[[Path], ServerProcess],
    *,
    client: SideProcess,
    valkey: ServerProcess,
    connections: int,
    one_core: bool = False,
) -> Mapping[str, float]:
    """One run in a new process: what an earlier one accepted would be swept over while this one is measured."""
    with tempfile.TemporaryDirectory(prefix="bench-gateway-") as folder:
        async with server(Path(folder)) as running_server:
            at = {"port": running_server.port, "connections": connections}
            if one_core:
                hold_to_one_core(running_server.pid)
            await client.call("load", seconds=_WARM_UP_SECONDS, **at)
            async with Redis.from_url(valkey.url) as redis:
                await redis.config_resetstat()
            before = cpu_seconds(running_server.pid)
            numbers: dict[str, float] = await client.call("load", seconds=_SECONDS, **at)
            spent = cpu_seconds(running_server.pid) - before
            async with Redis.from_url(valkey.url) as redis:
                scripts = (await redis.info("commandstats"))["cmdstat_evalsha"]
    return {
        **numbers,
        "per_cpu_second": numbers["requests"] / spent,
        "script_us": float(scripts["usec_per_call"]),
    }


def _measured(kind: str, row: Row, connections: int, pairs: Sequence[Pair]) -> Measured:
    if row in (_rate(connections), _one_core(connections)):
        key, unit = "per_second", "/s"
    elif row == _per_core(connections):
        key, unit = "per_cpu_second", "/CPU s"
    else:
        absolute = ", ".join(
            f"{name} {middle(pairs, at, 'p50'):.1f} ms (p99 {middle(pairs, at, 'p99'):.1f})" for name, at in BOTH
        )
        return Measured(row.on(kind), row, ratios(pairs, "p50"), absolute)
    absolute = ", ".join(f"{name} {middle(pairs, at, key):.0f}{unit}" for name, at in BOTH)
    if row == _rate(connections):
        absolute += f"; a script takes Redis {middle(pairs, 'a', 'script_us'):.0f} µs in A"
    return Measured(row.on(kind), row, ratios(pairs, key), absolute)


def gateway_process(broker: Broker, redis: str, siblings: Siblings, folder: Path, **changes: str) -> ServerProcess:
    """One gateway, with siblings that answer and nobody who reads its inboxes. `changes` go into its environment."""
    port = free_port()
    environment = {
        "PYTHONPATH": str(_PROJECT),
        "GATEWAY_PORT": str(port),
        "DATA_DIR": str(folder),
        "KAFKA_BOOTSTRAP_SERVERS": broker.url,
        "KAFKA_ENABLE_IDEMPOTENCE": str(broker.kind == KAFKA).lower(),
        "REDIS_URL": redis,
        "VAULT_KEY": VAULT_KEY,
        "INTERNAL_TOKEN": TOKEN,
        "DEMO_API_KEY": API_KEY,
        "RATE_LIMIT_PER_MINUTE": "1000000",
        "UPGRADER_URL": siblings.url,
        "RAG_URL": siblings.url,
        "USAGE_URL": siblings.url,
        "UPGRADE_DEADLINE_SECONDS": "600",
        "LOG_LEVEL": "WARNING",
    }
    environment |= changes
    argv = (executable, "-m", "services.gateway")
    url = f"http://127.0.0.1:{port}"
    return ServerProcess(ServerCommand("gateway", argv, port, url, lambda: http_ready(HOST, port), env=environment))


def _plain(broker: Broker, redis: str, folder: Path, *, one_at_a_time: bool = False) -> ServerProcess:
    port = free_port()
    options = {
        "port": port,
        "kind": broker.kind,
        "url": broker.url,
        "redis": redis,
        "path": str(folder / "plain.sqlite3"),
        "api_key": API_KEY,
        "one_at_a_time": one_at_a_time,
    }
    argv = (executable, "-m", "benchmarks.plain_gateway", json.dumps(options))
    environment = {"PYTHONPATH": str(_PROJECT)}
    url = f"http://127.0.0.1:{port}"
    return ServerProcess(ServerCommand("plain", argv, port, url, lambda: port_answers(port), env=environment))


class Client:
    """Posts conversations."""

    async def start(self) -> None: ...

    async def load(self, port: int, connections: int, seconds: float) -> dict[str, float]:
        """Requests per second, and milliseconds to the answer."""
        headers = {"X-API-Key": API_KEY, "Prefer": "respond-async"}
        answers = await post_for(port, "/api/upgrade", headers, _body, connections=connections, seconds=seconds)
        milliseconds = [1000 * seconds for seconds in answers.seconds]
        return {
            "requests": float(len(answers.seconds)),
            "per_second": len(answers.seconds) / answers.elapsed,
            "p50": percentile(milliseconds, 50),
            "p99": percentile(milliseconds, 99),
        }


def _body() -> bytes:
    unknown = new_id()
    body: dict[str, Any] = {
        "userPrompt": f"Explain to a new colleague how the paid leave of team {unknown} is asked for, which form it "
        "needs, and how long an answer takes, in plain words and at most 300 of them. " + "Name the forms. " * 20,
        "conversationHistory": [
            {"role": "user", "content": "We write a handbook for the team; mail drafts to ann.lee@example.org please."},
            {"role": "assistant", "content": "Which part of it comes first? " + "I have an outline of it. " * 10},
        ],
        "userId": "person-17",
    }
    return json.dumps(body).encode()
