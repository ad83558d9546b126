"""Checks the evidence of a run with faults. Returns one sentence for each violation."""

from collections import Counter
from datetime import datetime

from tests.faults.evidence import Evidence

_COUNTED = {"upgraded", "cached"}


def check(evidence: Evidence) -> list[str]:
    """Returns all violations."""
    return [
        *_every_accepted_upgrade_ended_once(evidence),
        *_the_ledger_holds_what_was_recorded(evidence),
        *_counters_equal_the_ledger(evidence),
        *_no_model_call_after_its_output_was_recorded(evidence),
    ]


def _every_accepted_upgrade_ended_once(evidence: Evidence) -> list[str]:
    findings = []
    results = evidence.records.get("upgrader", {})
    for marker, upgrade_id in evidence.upgrade_ids.items():
        ends = evidence.ends_seen.get(upgrade_id, set())
        if not ends:
            findings.append(f"{marker}: was accepted as {upgrade_id} and never ended for its client")
        if len(ends) > 1:
            findings.append(f"{marker}: ended {len(ends)} times for its client: {sorted(ends)}")
        if upgrade_id not in results:
            findings.append(f"{marker}: has no recorded result")
    return findings


def _the_ledger_holds_what_was_recorded(evidence: Evidence) -> list[str]:
    counted = Counter(str(event["_id"]) for event in evidence.ledger)
    owed = evidence.owed_events()
    missing = sorted(set(owed) - set(counted))
    return [
        *(f"event {event_id}, {owed[event_id]}, is not in the ledger" for event_id in missing),
        *(f"event {event_id} is in the ledger and not counted" for event_id in evidence.uncounted),
    ]


def _counters_equal_the_ledger(evidence: Evidence) -> list[str]:
    recounted: Counter[tuple[str, str, str]] = Counter()
    for data in evidence.ledger:
        if data["origin"] != "client":
            continue
        key = (data["tenantId"], data["period"])
        if "status" in data:
            recounted[*key, "upgrades"] += data["status"] in _COUNTED
        else:
            recounted[*key, "tokens"] += data["tokensIn"] + data["tokensOut"]
            recounted[*key, "embeddings"] += data["embeddings"]
    stored: Counter[tuple[str, str, str]] = Counter()
    for counter in evidence.counters:
        for meter in ("upgrades", "tokens", "embeddings"):
            stored[counter["tenantId"], counter["period"], meter] += counter.get(meter, 0)
    return [
        f"{tenant} {period} {meter}: the counter says {stored[tenant, period, meter]},"
        f" the ledger {recounted[tenant, period, meter]}"
        for tenant, period, meter in sorted(set(recounted) | set(stored))
        if stored[tenant, period, meter] != recounted[tenant, period, meter]
    ]


def _no_model_call_after_its_output_was_recorded(evidence: Evidence) -> list[str]:
    findings = []
    for call in evidence.calls:
        record = evidence.records.get(call.stage, {}).get(evidence.upgrade_ids.get(call.marker, ""))
        if record and call.at > datetime.fromisoformat(record["createdAt"]).timestamp() + 0.001:
            findings.append(f"{call.marker}: {call.stage} called the model after it had recorded its output")
    return findings
