"""Tests of the checker with evidence that contains deliberate violations."""

import copy
from typing import Any

from shared.contracts.contract import derived_id
from tests.faults.checker import check
from tests.faults.evidence import Evidence, ModelCall

RECORDED = "2026-11-23T12:00:00.000Z"
RECORDED_AT = 1795435200.0


def _fact(event_id: str) -> dict[str, str]:
    return {"eventId": event_id, "topic": "usage.recorded.v1"}


def sound() -> Evidence:
    usage = {"tenantId": "t", "period": "2026-11", "origin": "client", "tokensIn": 3, "tokensOut": 2, "embeddings": 0}
    ended = {"tenantId": "t", "period": "2026-11", "origin": "client", "status": "upgraded"}
    completed = derived_id("id-1", "completed")
    record: dict[str, Any] = {"_id": "id-1", "createdAt": RECORDED, "facts": [_fact("e-1"), _fact(completed)]}
    return Evidence(
        upgrade_ids={"case-1": "id-1"},
        ends_seen={"id-1": {("upgraded", RECORDED)}},
        records={"upgrader": {"id-1": record}},
        ledger=[
            {"_id": "e-1", **usage},
            {"_id": completed, **ended},
        ],
        counters=[{"tenantId": "t", "period": "2026-11", "upgrades": 1, "tokens": 5, "embeddings": 0}],
        calls=[ModelCall("case-1", "upgrader", RECORDED_AT - 1)],
    )


def test_sound_evidence_has_no_findings() -> None:
    assert check(sound()) == []


def test_an_upgrade_that_vanished_is_found() -> None:
    evidence = sound()
    evidence.ends_seen.clear()
    assert any("never ended" in finding for finding in check(evidence))


def test_a_second_end_is_found() -> None:
    evidence = sound()
    evidence.ends_seen["id-1"].add(("original", "2026-11-23T12:00:01.000Z"))
    assert any("ended 2 times" in finding for finding in check(evidence))


def test_a_lost_event_is_found() -> None:
    evidence = sound()
    del evidence.ledger[0]
    assert any("not in the ledger" in finding for finding in check(evidence))


def test_an_event_that_was_never_counted_is_found() -> None:
    evidence = sound()
    evidence.uncounted = ["e-1"]
    assert check(evidence) == ["event e-1 is in the ledger and not counted"]


def test_a_double_count_is_found() -> None:
    evidence = sound()
    evidence.counters = copy.deepcopy(evidence.counters)
    evidence.counters[0]["tokens"] += 5
    assert any("the counter says 10, the ledger 5" in finding for finding in check(evidence))


def test_a_model_call_for_a_recorded_stage_is_found() -> None:
    evidence = sound()
    evidence.calls.append(ModelCall("case-1", "upgrader", RECORDED_AT + 0.5))
    assert any("called the model after" in finding for finding in check(evidence))
