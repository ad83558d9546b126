"""Where the command-line modules find the broker."""

import json
import os
from pathlib import Path

from shared.messaging.settings import KafkaSettings


class NoBrokerAddress(Exception):
    """Neither the environment nor a running stack says where the broker is."""


def settings_of_running_stack() -> KafkaSettings:
    """KAFKA_BOOTSTRAP_SERVERS where it is set, else what `$DATA_DIR/endpoints.json` says. Raises NoBrokerAddress."""
    configured = KafkaSettings()
    if "kafka_bootstrap_servers" in configured.model_fields_set:
        return configured
    endpoints = Path(os.environ.get("DATA_DIR", ".data")) / "endpoints.json"
    try:
        address = json.loads(endpoints.read_text())["kafka"]
    except (OSError, ValueError, KeyError, TypeError):
        raise NoBrokerAddress(f"set KAFKA_BOOTSTRAP_SERVERS, or start the stack ({endpoints} is not there)") from None
    # Idempotence is no matter for single records sent by hand, and not every broker has it.
    return configured.model_copy(update={"kafka_bootstrap_servers": str(address), "kafka_enable_idempotence": False})
