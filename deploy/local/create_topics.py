"""Creates every topic of the registry on the broker that the environment names. A short-lived process of its own."""

import asyncio
import sys

from shared.messaging.settings import KafkaSettings
from shared.messaging.topic_admin import create_topics
from shared.observability.settings import load_settings


def main() -> int:
    asyncio.run(create_topics(load_settings(KafkaSettings)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
