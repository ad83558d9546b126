"""How FastStream's Kafka broker is made from the settings."""

import ssl
from typing import Any

from faststream.kafka import KafkaBroker
from faststream.security import BaseSecurity, SASLPlaintext, SASLScram256, SASLScram512

from shared.messaging.connection import METADATA_MAX_AGE_MS
from shared.messaging.settings import KafkaSettings


def make_broker(settings: KafkaSettings, **options: Any) -> KafkaBroker:
    """A broker that only consumes, creates no topic and keeps its own log lines to itself."""
    return KafkaBroker(
        settings.kafka_bootstrap_servers,
        request_timeout_ms=settings.kafka_request_timeout_ms,
        metadata_max_age_ms=METADATA_MAX_AGE_MS,
        security=_security(settings),
        consumer_only=True,
        allow_auto_create_topics=False,
        logger=None,
        **options,
    )


def _security(settings: KafkaSettings) -> BaseSecurity | None:
    protocol = settings.kafka_security_protocol
    if protocol == "PLAINTEXT":
        return None
    encrypted = protocol in ("SSL", "SASL_SSL")
    context = ssl.create_default_context(cafile=settings.kafka_ssl_cafile) if encrypted else None
    if protocol == "SSL":
        return BaseSecurity(ssl_context=context, use_ssl=True)
    kinds = {"PLAIN": SASLPlaintext, "SCRAM-SHA-256": SASLScram256, "SCRAM-SHA-512": SASLScram512}
    password = settings.kafka_sasl_password
    return kinds[settings.kafka_sasl_mechanism](
        username=settings.kafka_sasl_username or "",
        password=password.get_secret_value() if password else "",
        ssl_context=context,
        use_ssl=encrypted,
    )
