"""Where the command-line modules find the broker."""

import fcntl
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
