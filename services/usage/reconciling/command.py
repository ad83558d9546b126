"""The command `python -m services.usage.reconciling.command [--json]`: reconciles and prints the report.

Exit codes: 0 no difference, 1 a difference, 2 a wrong setting, 3 not everything could be compared.
"""

import argparse
import asyncio
import json
import sys

from services.usage.counting.ledger_store import LedgerStore
from services.usage.reconciling.admission_states import RedisAdmissionStates
from services.usage.reconciling.full_reconciliation import ReconcileReport, reconcile_everything
from services.usage.reconciling.pending import pending_reader
from services.usage.settings import ReconcileSettings
from shared.service.settings import load_settings
from shared.storage.documents import StorageUnavailable
from shared.storage.opening import open_database, open_redis

_SERVICE = "usage"
_DIFFERENCE_EXIT = 1
_NOT_COMPARED_EXIT = 3


async def reconcile_stored(settings: ReconcileSettings) -> ReconcileReport:
    """Reconciles the stores and the broker that the settings name. Raises StorageUnavailable."""
    database, redis = open_database(settings, _SERVICE), open_redis(settings, max_connections=2)
    ledger = LedgerStore(database)
    await database.start()
    try:
        return await reconcile_everything(ledger, RedisAdmissionStates(redis), pending_reader(settings, ledger))
    finally:
        await redis.aclose()
        await database.stop(2.0)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="reconcile", description="Compares counters, rollups and holds with the ledger."
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    options = parser.parse_args(arguments)
    settings = load_settings(ReconcileSettings)
    try:
        report = asyncio.run(reconcile_stored(settings))
    except StorageUnavailable as error:
        sys.stderr.write(f"not compared: the ledger cannot be read, {error}\n")
        return _NOT_COMPARED_EXIT
    sys.stdout.write((json.dumps(report.to_json()) if options.json else report.to_text()) + "\n")
    if not report.clean:
        return _DIFFERENCE_EXIT
    return 0 if report.complete else _NOT_COMPARED_EXIT


if __name__ == "__main__":
    sys.exit(main())
