"""Bodies of internal HTTP: results, missing events and counters. All routes require the `X-Internal-Token` header."""

from shared.contracts.contract import Contract
from shared.contracts.upgrade_results import UpgradeResult

INTERNAL_TOKEN_HEADER = "X-Internal-Token"  # noqa: S105 -- the name of a header


# upgrader: GET /internal/upgrades/{upgradeId}?tenantId=  -> UpgradeResult or 404
# upgrader: POST /internal/upgrades/lookup (ResultLookup) -> ResultPage, in the order of the ids, missing ones left out
# upgrader: GET /internal/upgrades?tenantId=&status=&userRef=&before=&limit= -> ResultPage, newest first
# upgrader: DELETE /internal/upgrades/{upgradeId}?tenantId= -> 204: the content is erased, the status stays
# summarizer, rag: DELETE /internal/upgrades/{upgradeId}?tenantId= -> 204: the content is erased, or 404: there was none
class ResultLookup(Contract):
    """The upgrades whose results are requested."""

    upgrade_ids: list[str]


class ResultPage(Contract):
    """Results of ended upgrades."""

    items: list[UpgradeResult]


# usage: POST /internal/events/missing (EventIds) -> EventIds: those that are not in the ledger as counted
class EventIds(Contract):
    """Ids of usage or completion events."""

    event_ids: list[str]


# usage: GET /internal/tenants/{tenantId}/counters?period=YYYY-MM -> TenantCounters (zeros when nothing was counted)
class TenantCounters(Contract):
    """What a tenant has used in a period. `version` rises with each change, so of two readings the newer is known."""

    tenant_id: str
    period: str
    upgrades: int = 0
    tokens: int = 0
    embeddings: int = 0
    cost_nano_usd: int = 0
    version: int = 0
