"""Start-up steps that run in short-lived child processes: checking every service's settings, and creating the topics.

The supervisor stays small this way: it imports neither the services nor a Kafka client.
"""

import asyncio
import importlib
import sys
from collections.abc import Mapping

from deploy.local.processes import ServerUnavailable, run_to_end
from shared.service.settings import WRONG_SETTING_EXIT, load_settings

_CHECK_SETTINGS, _CREATE_TOPICS = "check-settings", "create-topics"
_CHECK_SECONDS = 60.0
_TOPICS_SECONDS = 60.0
_TOPICS_ATTEMPTS = 3
_SHOWN_LINES = 15


class WrongSetting(Exception):
    """A setting is wrong, so nothing is started. The message is one line for the operator."""


async def check_service_settings(environment: Mapping[str, str]) -> None:
    """Raises WrongSetting when a service would refuse to start with this environment."""
    code, output = await _run(_CHECK_SETTINGS, environment, _CHECK_SECONDS)
    if code == WRONG_SETTING_EXIT:
        raise WrongSetting(output)
    if code != 0:
        raise ServerUnavailable(f"the settings could not be read:\n{output}")


async def create_topics(environment: Mapping[str, str]) -> None:
    """Creates every topic of the registry on the broker of this environment. Raises ServerUnavailable."""
    for _ in range(_TOPICS_ATTEMPTS):
        code, output = await _run(_CREATE_TOPICS, environment, _TOPICS_SECONDS)
        if code == 0:
            return
    lines = "\n".join(f"    {line}" for line in output.splitlines()[-_SHOWN_LINES:])
    raise ServerUnavailable(f"The topics could not be created:\n{lines}")


async def _run(step: str, environment: Mapping[str, str], limit_seconds: float) -> tuple[int, str]:
    command = (sys.executable, "-m", "deploy.local.startup_steps", step)
    return await run_to_end(step, command, environment=environment, limit_seconds=limit_seconds)


def main() -> int:
    """Runs the step that the command line names, in the child process. Returns the exit code."""
    return _check_settings() if sys.argv[1] == _CHECK_SETTINGS else _create_topics()


def _check_settings() -> int:
    from deploy.local.stack_plan import SERVICES

    for service in SERVICES:
        module = importlib.import_module(f"services.{service}.settings")
        load_settings(getattr(module, f"{service.capitalize()}Settings"))
    return 0


def _create_topics() -> int:
    from aiokafka.errors import KafkaError

    from shared.messaging.settings import KafkaSettings
    from shared.messaging.topics import create_topics as create_registered_topics

    settings = load_settings(KafkaSettings)
    try:
        asyncio.run(create_registered_topics(settings))
    except (KafkaError, OSError, TimeoutError) as error:
        reason = f"no broker at KAFKA_BOOTSTRAP_SERVERS={settings.kafka_bootstrap_servers} ({type(error).__name__})"
        sys.stderr.write(f"topics could not be created: {reason}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
