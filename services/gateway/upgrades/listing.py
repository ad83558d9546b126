"""Pages of a tenant's upgrades: the gateway's records, each with its result where there is one."""

from dataclasses import dataclass

from services.gateway.siblings.upgrader import UpgradeResults
from services.gateway.upgrades.accepted_record import AcceptedRecord
from services.gateway.upgrades.accepted_store import AcceptedStore
from services.gateway.upgrades.view import UpgradeViews
from shared.contracts.upgrade_http import UpgradeView
from shared.contracts.upgrade_results import UpgradeResult, UpgradeStatus
from shared.privacy.sealing import Vault

_MOST_ROUNDS = 10


@dataclass(frozen=True)
class ListedUpgrades:
    """Views, newest first, and the id to go on from; None when nothing is left."""

    items: list[UpgradeView]
    last_id: str | None


class UpgradeListing:
    """Reads pages. Records learn of ends a moment late, so statuses come from the results themselves."""

    def __init__(self, store: AcceptedStore, results: UpgradeResults, views: UpgradeViews, vault: Vault) -> None:
        self._store = store
        self._results = results
        self._views = views
        self._vault = vault

    async def page(
        self,
        tenant_id: str,
        *,
        limit: int,
        before: str | None,
        status: UpgradeStatus | None,
        user_id: str | None,
    ) -> ListedUpgrades:
        """At most `limit` upgrades from before that id on; with a status, only those that have it.

        A page may hold less than `limit` and still have a next one. Raises StorageUnavailable and ResultsUnavailable.
        """
        user_ref = self._vault.user_ref(tenant_id, user_id) if user_id else None
        # What the records call accepted may have ended a moment ago, so it is looked at for every status.
        outcomes = sorted({status, UpgradeStatus.ACCEPTED}) if status else []
        items: list[UpgradeView] = []
        for _ in range(_MOST_ROUNDS):
            records = await self._store.page(
                tenant_id, before=before, outcomes=outcomes, user_ref=user_ref, limit=limit + 1
            )
            more, records = len(records) > limit, records[:limit]
            for record, result in await self._with_results(records):
                before = record.upgrade_id
                if _shown(record, result, status):
                    items.append(self._views.of(record, result))
                if len(items) == limit:
                    more = more or record is not records[-1]
                    return ListedUpgrades(items, before if more else None)
            if not more:
                return ListedUpgrades(items, None)
        return ListedUpgrades(items, before)

    async def _with_results(self, records: list[AcceptedRecord]) -> list[tuple[AcceptedRecord, UpgradeResult | None]]:
        results = {result.upgrade_id: result for result in await self._results.among([r.upgrade_id for r in records])}
        return [(record, results.get(record.upgrade_id)) for record in records]


def _shown(record: AcceptedRecord, result: UpgradeResult | None, status: UpgradeStatus | None) -> bool:
    if result is None and record.has_ended():
        return False
    return status is None or status == (result.status if result else UpgradeStatus.ACCEPTED)
