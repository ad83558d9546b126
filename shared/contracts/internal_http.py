"""Bodies of the HTTP routes that services offer each other. All routes want the `X-Internal-Token` header."""

from shared.contracts.contract import Contract
from shared.contracts.upgrade_results import UpgradeResult

INTERNAL_TOKEN_HEADER = "X-Internal-Token"  # noqa: S105 -- the name of a header


# upgrader: GET /internal/upgrades/{upgradeId}?tenantId=  -> UpgradeResult or 404
# upgrader: POST /internal/upgrades/lookup (ResultLookup) -> ResultPage, in the order of the ids, missing ones left out
# upgrader: GET /internal/upgrades?tenantId=&status=&userRef=&before=&limit= -> ResultPage, newest first
# upgrader: DELETE /internal/upgrades/{upgradeId}?tenantId= -> 204: the content is gone, the end stays known
# summarizer, rag: DELETE /internal/upgrades/{upgradeId}?tenantId= -> 204: no content of it is left, or 404: none was
class ResultLookup(Contract):
    upgrade_ids: list[str]


class ResultPage(Contract):
    items: list[UpgradeResult]


# usage: POST /internal/events/missing (EventIds) -> EventIds: those that are not in the ledger as counted
class EventIds(Contract):
    event_ids: list[str]


# usage: GET /internal/tenants/{tenantId}/counters?period=YYYY-MM -> TenantCounters (zeros when nothing was counted)
class TenantCounters(Contract):
    tenant_id: str
    period: str
    upgrades: int = 0
    tokens: int = 0
    embeddings: int = 0
    cost_nano_usd: int = 0
    version: int = 0
