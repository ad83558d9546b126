"""Command line of the local stack: `python -m deploy.local run|stop|status|logs|env`."""

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence

from deploy.local.settings import LocalSettings
from deploy.local.stack_plan import PROJECT
from shared.service.settings import load_settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code."""
    options = _parser().parse_args(arguments)
    os.chdir(PROJECT)  # `.env` and relative folders are resolved in the project, wherever the command is run
    settings = load_settings(LocalSettings)
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        return _run_command(options, settings)
    return 130


def _run_command(options: argparse.Namespace, settings: LocalSettings) -> int:
    if options.command == "run":
        from deploy.local.run_command import run, run_detached

        if options.detach:
            return run_detached(settings, cluster=options.cluster, sample=options.sample)
        return run(settings, cluster=options.cluster, sample=options.sample, report_to=options.report_to)

    from deploy.local import operator_commands

    if options.command == "stop":
        return operator_commands.stop(settings)
    if options.command == "status":
        return operator_commands.status(settings, as_json=options.json)
    if options.command == "logs":
        return operator_commands.logs(settings, options.part, follow=options.follow, lines=options.lines)
    return operator_commands.env(settings, options.tool[1:] if options.tool[:1] == ["--"] else options.tool)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m deploy.local", description="Runs the whole stack on one machine.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="start all parts and serve until Ctrl-C")
    run.add_argument("--detach", action="store_true", help="return when the stack is ready")
    run.add_argument("--cluster", action="store_true", help="on Apache Kafka, Valkey and a MongoDB-wire server")
    run.add_argument("--no-sample", dest="sample", action="store_false", help="do not upgrade a sample prompt")
    run.add_argument("--report-to", type=int, help=argparse.SUPPRESS)
    commands.add_parser("stop", help="stop the stack; work in progress is finished first")
    status = commands.add_parser("status", help="show state, address and memory of each part")
    status.add_argument("--json", action="store_true")
    logs = commands.add_parser("logs", help="show the last log lines of one part or of all")
    logs.add_argument("part", nargs="?")
    logs.add_argument("-f", "--follow", action="store_true", help="keep printing new lines until Ctrl-C")
    logs.add_argument("-n", "--lines", type=int, default=50, help="lines per part (default 50)")
    env = commands.add_parser(
        "env", help="print the environment for tools that use the running stack, or run a tool with it"
    )
    env.add_argument("tool", nargs=argparse.REMAINDER, help="-- command and its arguments")
    return parser


if __name__ == "__main__":
    sys.exit(main())
