"""`python -m benchmarks`: runs the benchmarks, prints each ratio, and writes results.json and RESULTS.md."""

import argparse
import asyncio
import logging
import sys
import traceback
from collections.abc import Sequence
from typing import Protocol

from benchmarks import (
    end_to_end,
    faststream_loop,
    four_hops,
    gateway_accept,
    model_calls,
    report,
    rewrite,
    rollouts,
    stage_loop,
    stats_read,
    two_workers,
    usage_aggregation,
    usage_lag,
)
from benchmarks.backends import EMBEDDED, KAFKA, kafka_libs
from benchmarks.machine import busy_share, machine
from benchmarks.pairs import Measured, Row
from deploy.local.processes import ServerUnavailable


class Benchmark(Protocol):
    """A benchmark module."""

    @property
    def __name__(self) -> str: ...

    @property
    def ROWS(self) -> tuple[Row, ...]: ...

    async def measure(self, kind: str, chosen: Sequence[Row]) -> list[Measured]: ...


WITHOUT_BROKER: tuple[Benchmark, ...] = (rewrite, rollouts)
"""Run once, with the benchmarks of the embedded broker."""
BENCHMARKS: tuple[Benchmark, ...] = (
    stage_loop,
    four_hops,
    model_calls,
    end_to_end,
    two_workers,
    gateway_accept,
    usage_aggregation,
    usage_lag,
    stats_read,
    *WITHOUT_BROKER,
)
PEERS: tuple[Benchmark, ...] = (faststream_loop,)
_MAX_BUSY_SHARE = 0.2


async def run(kinds: Sequence[str], only: str | None, *, peers: bool) -> int:
    """Runs the selected benchmarks and returns the exit code.

    It is 2 if none is selected or a broker is unavailable, 1 if a benchmark failed, else 0.
    """
    chosen = [
        (kind, module, rows)
        for module in (*BENCHMARKS, *(PEERS if peers else ()))
        for kind in kinds
        if kind == EMBEDDED or module not in WITHOUT_BROKER
        if (rows := [row for row in module.ROWS if only is None or only in _names(module, row, kind)])
    ]
    if not chosen:
        names = ", ".join(row.name for module in (*BENCHMARKS, *PEERS) for row in module.ROWS)
        print(f"no benchmark is called {only}; known are {names} (each also with -{EMBEDDED} or -{KAFKA})")
        return 2
    try:
        if any(kind == KAFKA for kind, _, _ in chosen):
            await kafka_libs()
    except ServerUnavailable as missing:
        print(f"{missing}\nWithout Apache Kafka: python -m benchmarks --embedded")
        return 2
    print(f"machine: {machine()}", flush=True)
    everything = [row for module in (*BENCHMARKS, *PEERS) for row in module.ROWS]
    failed = 0
    for kind, module, rows in chosen:
        busy = await busy_share()
        if busy > _MAX_BUSY_SHARE:
            print(f"other processes use {busy:.0%} of this machine: ratios will spread", flush=True)
        try:
            results = await module.measure(kind, rows)
        except Exception:
            failed = 1
            print(
                f"{', '.join(row.on(kind) for row in rows)}: failed\n{traceback.format_exc()}",
                flush=True,
            )
            continue
        for measured in results:
            print(report.line(measured), flush=True)
        report.write(results, everything)
    return failed


def _names(module: Benchmark, row: Row, kind: str) -> tuple[str, ...]:
    """Returns the names that select a row: its own or its module's, each with or without the kind of broker."""
    benchmark = module.__name__.rpartition(".")[2].replace("_", "-")
    return row.name, row.on(kind), benchmark, f"{benchmark}-{kind}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", metavar="NAME", help="one benchmark, on both brokers or on one (NAME-kafka)")
    parser.add_argument("--peers", action="store_true", help="also run the peers")
    broker = parser.add_mutually_exclusive_group()
    broker.add_argument("--embedded", action="store_true", help="only on the embedded broker")
    broker.add_argument("--cluster", action="store_true", help="only on Apache Kafka")
    arguments = parser.parse_args()
    kinds = [EMBEDDED] if arguments.embedded else [KAFKA] if arguments.cluster else [EMBEDDED, KAFKA]
    logging.getLogger("aiokafka").setLevel(logging.ERROR)
    return asyncio.run(run(kinds, arguments.only, peers=arguments.peers))


if __name__ == "__main__":
    sys.exit(main())
