"""How aiokafka's clients are made from the settings."""

import fcntl
import json
import os
import ssl
from pathlib import Path
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


class NoBrokerAddress(Exception):
    """Neither the environment nor a running stack says where the broker is."""


def settings_of_running_stack() -> KafkaSettings:
    """KAFKA_BOOTSTRAP_SERVERS where it is set, else what `$DATA_DIR/endpoints.json` says. Raises NoBrokerAddress."""
    configured = KafkaSettings()
    if "kafka_bootstrap_servers" in configured.model_fields_set:
        return configured
    data_dir = Path(os.environ.get("DATA_DIR", ".data"))
    try:
        address = json.loads((data_dir / "endpoints.json").read_text())["kafka"]
    except (OSError, ValueError, KeyError, TypeError):
        address = None
    # A supervisor that was killed leaves its endpoints behind.
    if address is None or not _is_locked(data_dir / "supervisor.lock"):
        raise NoBrokerAddress(
            "the stack is not running: `make run` starts it, or KAFKA_BOOTSTRAP_SERVERS names another broker"
        )
    # Idempotence is no matter for single records sent by hand, and not every broker has it.
    return configured.model_copy(update={"kafka_bootstrap_servers": str(address), "kafka_enable_idempotence": False})


def _is_locked(file: Path) -> bool:
    """Whether a supervisor runs: the kernel lets go of its lock when it ends, however it ends."""
    try:
        descriptor = os.open(file, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
