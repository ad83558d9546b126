"""The command line of the local stack: `python -m deploy.local run|stop|status|logs|env`."""

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence

from deploy.local.settings import LocalSettings
from deploy.local.stack_plan import PROJECT
from shared.service.settings import load_settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; gives the exit code of the process."""
    given = _parser().parse_args(arguments)
    os.chdir(PROJECT)  # `.env` and relative folders mean the project's, wherever the command is typed
    settings = load_settings(LocalSettings)
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        return _run_command(given, settings)
    return 130


def _run_command(given: argparse.Namespace, settings: LocalSettings) -> int:
    if given.command == "run":
        from deploy.local.run_command import run, run_detached

        if given.detach:
            return run_detached(settings, cluster=given.cluster, sample=given.sample)
        return run(settings, cluster=given.cluster, sample=given.sample, report_to=given.report_to)

    from deploy.local import operator_commands

    if given.command == "stop":
        return operator_commands.stop(settings)
    if given.command == "status":
        return operator_commands.status(settings, as_json=given.json)
    if given.command == "logs":
        return operator_commands.logs(settings, given.part, follow=given.follow, lines=given.lines)
    return operator_commands.env(settings, given.tool[1:] if given.tool[:1] == ["--"] else given.tool)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m deploy.local", description="The whole stack on one machine.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="start everything and serve until Ctrl-C")
    run.add_argument("--detach", action="store_true", help="return when it is ready")
    run.add_argument("--cluster", action="store_true", help="on Apache Kafka, Valkey and a MongoDB-wire server")
    run.add_argument("--no-sample", dest="sample", action="store_false", help="do not upgrade a sample prompt")
    run.add_argument("--report-to", type=int, help=argparse.SUPPRESS)
    commands.add_parser("stop", help="end it; nothing that was begun is lost")
    status = commands.add_parser("status", help="what runs, where, with how much memory")
    status.add_argument("--json", action="store_true")
    logs = commands.add_parser("logs", help="the last lines of a part, or of all")
    logs.add_argument("part", nargs="?")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until Ctrl-C")
    logs.add_argument("-n", "--lines", type=int, default=50, help="lines of each part (50)")
    env = commands.add_parser("env", help="print how a tool reaches the running stack, or run a tool so")
    env.add_argument("tool", nargs=argparse.REMAINDER, help="-- command and its arguments")
    return parser


if __name__ == "__main__":
    sys.exit(main())
