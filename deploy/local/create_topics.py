"""Creates every topic of the registry on the broker that the environment names. A short-lived process of its own."""

import asyncio
import sys

from aiokafka.errors import KafkaError

from shared.messaging.settings import KafkaSettings
from shared.messaging.topics import create_topics
from shared.service.settings import load_settings


def main() -> int:
    settings = load_settings(KafkaSettings)
    try:
        asyncio.run(create_topics(settings))
    except (KafkaError, OSError, TimeoutError) as error:
        reason = f"no broker at KAFKA_BOOTSTRAP_SERVERS={settings.kafka_bootstrap_servers} ({type(error).__name__})"
        sys.stderr.write(f"topics could not be created: {reason}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
