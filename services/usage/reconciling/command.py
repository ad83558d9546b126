"""`python -m services.usage.reconciling.command [--json]`: exit 1 on a difference, 3 when not all was compared."""

import argparse
import asyncio
import json
import sys
from datetime import timedelta

from services.usage.counting.ledger_store import LedgerStore
from services.usage.reconciling.admission_states import RedisAdmissionStates
from services.usage.reconciling.full_reconciliation import Reconciled, reconcile_everything
from services.usage.reconciling.pending import GROUP, Pending, pending_events
from services.usage.settings import ReconcileSettings
from shared.contracts.contract import now_utc
from shared.service.settings import load_settings
from shared.storage.documents import StorageUnavailable
from shared.storage.opening import open_database, open_redis

SERVICE = "usage"
NOT_COMPARED_EXIT = 3


async def reconcile_stored(settings: ReconcileSettings) -> Reconciled:
    """Opens what the settings name, compares, closes it. Raises StorageUnavailable."""
    database, redis = open_database(settings, SERVICE), open_redis(settings, max_connections=2)
    ledger = LedgerStore(database)

    async def pending() -> Pending:
        oldest = now_utc() - timedelta(days=settings.usage_event_retention_days)
        return await pending_events(settings, GROUP, ledger, oldest)

    await database.start()
    try:
        return await reconcile_everything(ledger, RedisAdmissionStates(redis), pending)
    finally:
        await redis.aclose()
        await database.stop(2.0)


def main(arguments: list[str] | None = None) -> int:
    """Gives the exit code: 0 no difference, 1 a difference, 2 a wrong setting, 3 not all could be compared."""
    parser = argparse.ArgumentParser(
        prog="reconcile", description="Compares counters, rollups and holds with the ledger."
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    options = parser.parse_args(arguments)
    settings = load_settings(ReconcileSettings)
    try:
        found = asyncio.run(reconcile_stored(settings))
    except StorageUnavailable as error:
        sys.stderr.write(f"not compared: the ledger cannot be read, {error}\n")
        return NOT_COMPARED_EXIT
    sys.stdout.write((json.dumps(found.to_json()) if options.json else found.to_text()) + "\n")
    if not found.clean:
        return 1
    return 0 if found.complete else NOT_COMPARED_EXIT


if __name__ == "__main__":
    sys.exit(main())
