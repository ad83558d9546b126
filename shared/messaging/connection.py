"""Builds aiokafka producers, consumers and admin clients from KafkaSettings."""

import ssl
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient

from shared.contracts.topics import all_topics
from shared.messaging.settings import KafkaSettings

METADATA_MAX_AGE_MS = 30_000


def make_producer(settings: KafkaSettings, max_request_bytes: int) -> AIOKafkaProducer:
    """A producer that waits for all replicas and does not linger. `max_request_bytes` limits one record."""
    return AIOKafkaProducer(
        **connection_options(settings),
        acks="all",
        linger_ms=0,
        enable_idempotence=settings.kafka_enable_idempotence,
        max_request_size=max_request_bytes,
        # Records that arrive during a request are batched into the next one; every topic must accept that batch.
        max_batch_size=min(topic.max_message_bytes for topic in all_topics()),
    )


def make_consumer(settings: KafkaSettings, **options: Any) -> AIOKafkaConsumer:
    """A consumer without auto-commit that starts at the beginning of partitions without a committed offset."""
    return AIOKafkaConsumer(
        **connection_options(settings),
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        fetch_max_wait_ms=settings.kafka_fetch_max_wait_ms,
        **options,
    )


def make_admin(settings: KafkaSettings) -> AIOKafkaAdminClient:
    return AIOKafkaAdminClient(**connection_options(settings))


def connection_options(settings: KafkaSettings) -> dict[str, Any]:
    """The arguments common to all clients: address, time-outs and security."""
    return {
        "bootstrap_servers": settings.kafka_bootstrap_servers,
        "request_timeout_ms": settings.kafka_request_timeout_ms,
        "metadata_max_age_ms": METADATA_MAX_AGE_MS,
        **security_options(settings),
    }


def security_options(settings: KafkaSettings) -> dict[str, Any]:
    """The client arguments for TLS and SASL; only `security_protocol` for a plaintext connection."""
    protocol = settings.kafka_security_protocol
    options: dict[str, Any] = {"security_protocol": protocol}
    if protocol in ("SSL", "SASL_SSL"):
        options["ssl_context"] = ssl.create_default_context(cafile=settings.kafka_ssl_cafile)
    if protocol.startswith("SASL"):
        password = settings.kafka_sasl_password
        options["sasl_mechanism"] = settings.kafka_sasl_mechanism
        options["sasl_plain_username"] = settings.kafka_sasl_username
        options["sasl_plain_password"] = password.get_secret_value() if password else None
    return options


def group_options(settings: KafkaSettings, group: str) -> dict[str, Any]:
    """The arguments of a group member. The heartbeat interval is short: a heartbeat's response reports a rebalance."""
    options: dict[str, Any] = {
        "group_id": group,
        "session_timeout_ms": settings.kafka_session_timeout_ms,
        "heartbeat_interval_ms": min(1000, settings.kafka_session_timeout_ms // 4),
        "rebalance_timeout_ms": settings.kafka_session_timeout_ms,
    }
    if settings.kafka_static_membership:
        options["group_instance_id"] = f"{group}.{settings.kafka_instance_name}"
    return options
