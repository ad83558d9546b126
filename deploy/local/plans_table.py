"""The table of plans in docs/access.md."""

from shared.contracts.plans import PLAN_LIMITS


def plans_table() -> str:
    """Markdown: a row for each plan, with the most of each meter in a month."""
    rows = ["| plan | upgrades | tokens | embeddings |", "|---|---|---|---|"]
    for plan, limits in PLAN_LIMITS.items():
        cells = (_amount(limit) for limit in (limits.upgrades, limits.tokens, limits.embeddings))
        rows.append(f"| {plan.value} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _amount(limit: int | None) -> str:
    return "unlimited" if limit is None else f"{limit:,}"
