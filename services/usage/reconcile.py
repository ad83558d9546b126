"""`python -m services.usage.reconcile [--json]`: exit 1 when counters or rollups are not what the ledger says."""

import argparse
import asyncio
import json
import sys

from services.usage.ledger_store import LedgerStore
from services.usage.recount import Reconciliation, reconcile
from services.usage.settings import LedgerSettings
from shared.observability.settings import load_settings
from shared.storage.documents import StorageUnavailable
from shared.storage.opening import open_database

SERVICE = "usage"
STORE_OUT_EXIT = 3


async def reconcile_stored(settings: LedgerSettings) -> Reconciliation:
    """Opens the store that the settings name, compares, closes it. Raises StorageUnavailable."""
    database = open_database(settings, SERVICE)
    ledger = LedgerStore(database)
    await database.start()
    try:
        return await reconcile(ledger)
    finally:
        await database.stop(2.0)


def report(found: Reconciliation, as_json: bool) -> str:
    """What the operator is shown."""
    if as_json:
        return json.dumps(
            {
                "events": found.events,
                "uncounted": found.uncounted,
                "tenants": found.tenants,
                "moving": found.moving,
                "clean": found.clean,
                "differences": [difference.to_json() for difference in found.differences],
            }
        )
    lines = [
        f"{difference.tenant_id}  {difference.what} {difference.where}  {difference.meter}: stored {difference.stored},"
        f" ledger {difference.ledger}, off by {difference.amount:+d}"
        for difference in found.differences
    ]
    if found.uncounted:
        lines.append(f"{found.uncounted} events of the ledger are not counted")
    if found.moving:
        lines.append(f"{found.moving} tenants changed all the time and were not compared")
    verdict = "no difference" if found.clean else f"{len(found.differences)} differences"
    lines.append(f"{found.events} events of {found.tenants} tenants: {verdict}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Gives the exit code: 0 no difference, 1 a difference, 2 a wrong setting, 3 the store is out."""
    parser = argparse.ArgumentParser(prog="reconcile", description="Compares counters and rollups with the ledger.")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    options = parser.parse_args(arguments)
    settings = load_settings(LedgerSettings)
    try:
        found = asyncio.run(reconcile_stored(settings))
    except StorageUnavailable as error:
        sys.stderr.write(f"the ledger cannot be read: {error}\n")
        return STORE_OUT_EXIT
    sys.stdout.write(report(found, options.json) + "\n")
    return 0 if found.clean else 1


if __name__ == "__main__":
    sys.exit(main())
