"""Tests of the exit codes of `make reconcile`."""

import pytest

from services.usage.reconciling import command as reconcile
from services.usage.reconciling.comparison import Difference
from services.usage.reconciling.full_reconciliation import ReconcileReport
from services.usage.reconciling.recount import LedgerCheck
from services.usage.settings import ReconcileSettings
from shared.storage.documents import StorageUnavailable

WRONG = Difference("tenant-a", "counter", "2026-11", "tokens", 2, 1)


@pytest.mark.parametrize(
    ("ledger", "unreached", "code"),
    [
        (LedgerCheck(), {}, 0),
        (LedgerCheck(differences=[WRONG]), {}, 1),
        (LedgerCheck(uncounted=1), {}, 1),
        (LedgerCheck(uncompared=1), {}, 3),
        (LedgerCheck(), {"topics": "TimeoutError"}, 3),
        (LedgerCheck(differences=[WRONG], uncompared=1), {"topics": "TimeoutError"}, 1),
    ],
)
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_exit_codes(
    monkeypatch: pytest.MonkeyPatch, ledger: LedgerCheck, unreached: dict[str, str], code: int, form: list[str]
) -> None:
    async def found(settings: ReconcileSettings) -> ReconcileReport:
        return ReconcileReport(ledger, None, None, unreached)

    monkeypatch.setattr(reconcile, "reconcile_stored", found)
    assert reconcile.main(form) == code


def test_an_unavailable_store_exits_with_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    async def out(settings: ReconcileSettings) -> ReconcileReport:
        raise StorageUnavailable("down")

    monkeypatch.setattr(reconcile, "reconcile_stored", out)
    assert reconcile.main([]) == 3
