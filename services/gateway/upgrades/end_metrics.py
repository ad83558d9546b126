"""Counts how upgrades end."""

from shared.contracts.upgrade_results import UpgradeResult, UpgradeStatus
from shared.observability.metrics import UPGRADE_ERRORS, UPGRADE_LATENCY


def count_end(result: UpgradeResult) -> None:
    """Notes the latency of an ended upgrade, and why it was not upgraded if it was not."""
    UPGRADE_LATENCY.labels(status=result.status.value).observe(result.latency_ms / 1000)
    if result.status in (UpgradeStatus.ORIGINAL, UpgradeStatus.FAILED):
        UPGRADE_ERRORS.labels(error_type=result.error.code if result.error else result.status.value).inc()
