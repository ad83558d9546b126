"""What a model call used, in the words of the contracts."""

from shared.contracts.problems import WarningCode
from shared.contracts.upgrade_tasks import ComponentUsage, UpgradeWarning
from shared.llm.usage import ModelUsage


def component_usage(component: str, operation: str, usage: ModelUsage) -> ComponentUsage:
    """One line of an upgrade's usage from one model call with all its attempts."""
    return ComponentUsage(
        component=component,
        operation=operation,
        model=usage.model,
        tokens_in=usage.tokens_in,
        tokens_out=usage.tokens_out,
        embeddings=usage.embeddings,
        cost_nano_usd=usage.cost_nano_usd,
        latency_ms=usage.latency_ms,
    )


def usage_warnings(usage: ModelUsage) -> list[UpgradeWarning]:
    """What the client should know of the model that was used."""
    warnings = []
    if usage.offline:
        detail = "Made by the offline model, by fixed rules, without a language model."
        warnings.append(UpgradeWarning(code=WarningCode.OFFLINE_MODEL, detail=detail))
    if not usage.price_known:
        detail = f"No price is known for the model {usage.model}; its cost is counted as 0."
        warnings.append(UpgradeWarning(code=WarningCode.PRICE_UNKNOWN, detail=detail))
    return warnings
