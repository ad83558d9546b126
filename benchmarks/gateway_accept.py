"""Measures how many upgrades one gateway process accepts, and how long it takes until one is on disk."""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from sys import executable

from redis.asyncio import Redis

from benchmarks.backends import KAFKA, PROJECT, Broker, running
from benchmarks.machine import cpu_seconds, pin_to_one_core
from benchmarks.pairs import Measured, Pair, Row, medians, middle, paired, ratios
from benchmarks.side_process import SideProcess, side
from deploy.local.ports import HOST, free_port
from deploy.local.processes import ServerCommand
from deploy.local.readiness import http_ready, port_answers
from deploy.local.servers import ServerProcess, start_valkey
from services.gateway.identity.api_keys import DEMO_TENANT_ID
from shared.contracts.quota import Plan
from shared.messaging.topics import create_topics
from tests.component.gateway_world import API_KEY, TOKEN, VAULT_KEY, Siblings

_SECONDS = 3.0
_WARM_UP_SECONDS = 0.5
_SIDES = (
    "A is one gateway process, called with `Prefer: respond-async`: it answers when the accepted record is on disk. "
    "B is FastAPI on uvicorn where every request does the same steps one after another: looks up and compares the key, "
    "validates, redacts, runs the gateway's admission script, inserts with its own commit, publishes with acks=all "
    "and does the XADD. A conversation of 1 KB; the client is a separate process"
)


def _rate(connections: int) -> Row:
    return Row(f"gateway-accept-{connections}", "requests/s", f"{_SIDES}, {_connections(connections)}.")


def _per_core(connections: int) -> Row:
    sentence = "Requests per second of CPU time of the serving process, including its background work"
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
        "Each server is pinned to one core, and B handles one request at a time: each begins after the previous one is "
        f"answered; otherwise as gateway-accept-{connections}.",
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
    """Measures the chosen rows on one kind of broker."""
    results: list[Measured] = []
    siblings = Siblings()
    # No stage runs here, so holds are never released; this plan is large enough for all of them.
    siblings.usage.set_plan(DEMO_TENANT_ID, Plan.ENTERPRISE)
    async with siblings.serving(), running(kind) as broker, await start_valkey() as valkey:
        await create_topics(broker.settings())
        async with side("benchmarks.gateway_client:Client") as client:
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
    """Measures one run in a new process, so that it does not sweep the open upgrades of earlier runs."""
    with tempfile.TemporaryDirectory(prefix="bench-gateway-") as folder:
        async with server(Path(folder)) as running_server:
            at = {"port": running_server.port, "connections": connections}
            if one_core:
                pin_to_one_core(running_server.pid)
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
        absolute = medians(pairs, "{p50:.1f} ms (p99 {p99:.1f})")
        return Measured(row.on(kind), row, ratios(pairs, "p50"), absolute)
    absolute = medians(pairs, f"{{{key}:.0f}}{unit}")
    if row == _rate(connections):
        absolute += f"; a script call takes Redis {middle(pairs, 'a', 'script_us'):.0f} µs in A"
    return Measured(row.on(kind), row, ratios(pairs, key), absolute)


def gateway_process(broker: Broker, redis: str, siblings: Siblings, folder: Path, **changes: str) -> ServerProcess:
    """Returns a gateway with fake sibling services and no readers of its inboxes. `changes` modify its environment."""
    port = free_port()
    environment = {
        "PYTHONPATH": str(PROJECT),
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
    environment = {"PYTHONPATH": str(PROJECT)}
    url = f"http://127.0.0.1:{port}"
    return ServerProcess(ServerCommand("plain", argv, port, url, lambda: port_answers(port), env=environment))
