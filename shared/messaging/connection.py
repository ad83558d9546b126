"""How aiokafka's clients are made from the settings."""

import ssl
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient

from shared.contracts.topics import all_topics
from shared.messaging.settings import KafkaSettings

METADATA_MAX_AGE_MS = 30_000


def connection_options(settings: KafkaSettings) -> dict[str, Any]:
    """The arguments that every client takes: address, time-outs and security."""
    options: dict[str, Any] = {
        "bootstrap_servers": settings.kafka_bootstrap_servers,
        "security_protocol": settings.kafka_security_protocol,
        "request_timeout_ms": settings.kafka_request_timeout_ms,
        "metadata_max_age_ms": METADATA_MAX_AGE_MS,
    }
    if settings.kafka_security_protocol in ("SSL", "SASL_SSL"):
        options["ssl_context"] = ssl.create_default_context(cafile=settings.kafka_ssl_cafile)
    if settings.kafka_security_protocol.startswith("SASL"):
        password = settings.kafka_sasl_password
        options["sasl_mechanism"] = settings.kafka_sasl_mechanism
        options["sasl_plain_username"] = settings.kafka_sasl_username
        options["sasl_plain_password"] = password.get_secret_value() if password else None
    return options


def make_producer(settings: KafkaSettings, max_request_bytes: int) -> AIOKafkaProducer:
    """A producer that waits for all replicas and sends at once. `max_request_bytes` bounds one record."""
    return AIOKafkaProducer(
        **connection_options(settings),
        acks="all",
        linger_ms=0,
        enable_idempotence=settings.kafka_enable_idempotence,
        max_request_size=max_request_bytes,
        # What piles up while a request is under way goes with the next one, in a batch that every topic takes.
        max_batch_size=min(topic.max_message_bytes for topic in all_topics()),
    )


def make_consumer(settings: KafkaSettings, **options: Any) -> AIOKafkaConsumer:
    """A consumer that commits nothing by itself and starts at the beginning where nothing was committed."""
    return AIOKafkaConsumer(
        **connection_options(settings),
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        fetch_max_wait_ms=settings.kafka_fetch_max_wait_ms,
        **options,
    )


def group_options(settings: KafkaSettings, group: str) -> dict[str, Any]:
    """The arguments of a group member. The heartbeat is short, since it is how members learn of a rebalance."""
    options: dict[str, Any] = {
        "group_id": group,
        "session_timeout_ms": settings.kafka_session_timeout_ms,
        "heartbeat_interval_ms": min(1000, settings.kafka_session_timeout_ms // 4),
        "rebalance_timeout_ms": settings.kafka_session_timeout_ms,
    }
    if settings.kafka_static_membership:
        options["group_instance_id"] = f"{group}.{settings.kafka_instance_name}"
    return options


def make_admin(settings: KafkaSettings) -> AIOKafkaAdminClient:
    return AIOKafkaAdminClient(**connection_options(settings))
