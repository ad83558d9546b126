"""Public views of upgrades, one at a time or in pages, with the client's own values in place of placeholders."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.gateway.upgrades.accepted_record import AcceptedRecord
from services.gateway.upgrades.accepted_store import AcceptedStore
from services.gateway.upgrades.stage_clients import UpgradeResults
from shared.contracts.contract import format_usd
from shared.contracts.problems import WarningCode
from shared.contracts.upgrade_http import CitationView, UpgradeView, UsageComponentView, UsageView
from shared.contracts.upgrade_results import UpgradeError, UpgradeResult, UpgradeStatus, UsageTotals
from shared.contracts.upgrade_tasks import ComponentUsage, SealedText, UpgradeTask, UpgradeWarning
from shared.observability.logs import get_logger
from shared.privacy.placeholders import PlaceholderMap, check_placeholders, restore
from shared.privacy.sealing import SealBroken, Vault

_MAX_ROUNDS = 10

log = get_logger(__name__)


class UpgradeViews:
    """Makes views from records and results. It opens the sealed placeholder maps."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault

    def of(self, record: AcceptedRecord, result: UpgradeResult | None, user_prompt: str | None = None) -> UpgradeView:
        """The view of an ended upgrade with its result, or of an accepted one without.

        `user_prompt` is the prompt as the client sent it; without it, it is restored from the record.
        """
        try:
            if result is not None:
                return self._ended(record, result)
            if user_prompt is None:
                redacted = UpgradeTask.model_validate_json(record.task).user_prompt
                user_prompt = restore(redacted, self._values(record, []))
            return self._empty(record, UpgradeStatus.ACCEPTED, user_prompt)
        except SealBroken:
            log.error("placeholder_map_not_opened", upgrade_id=record.upgrade_id)
            return self._unreadable(record)

    def _unreadable(self, record: AcceptedRecord) -> UpgradeView:
        """A failed view without content. Unrestored placeholders could be mistaken for the client's own text."""
        detail = "The values that were taken out of this upgrade cannot be read any more. Please send it again."
        return self._empty(record, UpgradeStatus.FAILED, "", UpgradeError(code="content_unreadable", detail=detail))

    @staticmethod
    def _empty(
        record: AcceptedRecord, status: UpgradeStatus, user_prompt: str, error: UpgradeError | None = None
    ) -> UpgradeView:
        return UpgradeView(
            id=record.upgrade_id,
            status=status,
            mode=None,
            language=None,
            user_prompt=user_prompt,
            user_ref=record.user_ref,
            upgraded_prompt=None,
            reasoning="",
            missing_questions=[],
            confidence=None,
            citations=[],
            prompt=None,
            model=None,
            usage=UsageView(),
            warnings=[],
            error=error,
            created_at=record.created_at,
            completed_at=record.deadline if status == UpgradeStatus.FAILED else None,
            latency_ms=None,
        )

    def _ended(self, record: AcceptedRecord, result: UpgradeResult) -> UpgradeView:
        values = self._values(record, result.sealed_pii)
        warnings = [*result.warnings, *placeholder_warnings(result, values)]
        error = result.error
        return UpgradeView(
            id=result.upgrade_id,
            status=result.status,
            mode=result.mode,
            language=result.language,
            user_prompt=restore(result.user_prompt, values),
            user_ref=record.user_ref,
            upgraded_prompt=None if result.upgraded_prompt is None else restore(result.upgraded_prompt, values),
            reasoning=restore(result.reasoning, values),
            missing_questions=[restore(question, values) for question in result.missing_questions],
            confidence=result.confidence,
            citations=[
                CitationView(
                    document_id=chunk.document_id,
                    title=restore(chunk.title, values),
                    score=chunk.score,
                    text=restore(chunk.text, values),
                )
                for chunk in result.citations
            ],
            prompt=result.prompt,
            model=result.model,
            usage=_usage(result.usage),
            warnings=[UpgradeWarning(code=w.code, detail=restore(w.detail, values)) for w in warnings],
            error=UpgradeError(code=error.code, detail=restore(error.detail, values)) if error else None,
            created_at=result.created_at,
            completed_at=result.completed_at,
            latency_ms=result.latency_ms,
        )

    def _values(self, record: AcceptedRecord, added: Sequence[SealedText]) -> dict[str, str]:
        """The value of each placeholder, from the client's map and the maps that stages added. Raises SealBroken."""
        values: dict[str, str] = {}
        for sealed in [record.sealed_pii, *added]:
            if sealed is None:
                continue
            opened = self._vault.open(sealed, tenant_id=record.tenant_id, subject_id=record.upgrade_id)
            found = PlaceholderMap.from_json(opened).values()
            # A stage's map may repeat the client's placeholders; the client's own values come first.
            values = {**found, **values}
        return values


def placeholder_warnings(result: UpgradeResult, values: Mapping[str, str]) -> list[UpgradeWarning]:
    """Warnings about placeholders that the model dropped, invented or doubled. They contain no values."""
    if result.status not in (UpgradeStatus.UPGRADED, UpgradeStatus.CACHED) or result.upgraded_prompt is None:
        return []
    report = check_placeholders(result.user_prompt, result.upgraded_prompt, known=list(values))
    found = (
        (WarningCode.PLACEHOLDER_DROPPED, report.dropped, "is missing from the upgraded prompt"),
        (WarningCode.PLACEHOLDER_INVENTED, report.invented, "stands for nothing in the request"),
        (
            WarningCode.PLACEHOLDER_DOUBLED,
            report.doubled,
            "stands in the upgraded prompt more often than in the prompt",
        ),
    )
    return [
        UpgradeWarning(code=code, detail=f"{_name(placeholder)} {what}.")
        for code, placeholders, what in found
        for placeholder in placeholders
    ]


def _name(placeholder: str) -> str:
    # Without brackets, so that restoring the detail does not insert the value.
    return placeholder.strip("<>")


def _usage(usage: Sequence[ComponentUsage]) -> UsageView:
    totals = UsageTotals.over(list(usage))
    return UsageView(
        tokens_in=totals.tokens_in,
        tokens_out=totals.tokens_out,
        embeddings=totals.embeddings,
        cost_usd=format_usd(totals.cost_nano_usd),
        components=[
            UsageComponentView(
                component=item.component,
                operation=item.operation,
                tokens_in=item.tokens_in,
                tokens_out=item.tokens_out,
                embeddings=item.embeddings,
                cost_usd=format_usd(item.cost_nano_usd),
                latency_ms=item.latency_ms,
                cache_hit=item.cache_hit,
            )
            for item in usage
        ],
    )


@dataclass(frozen=True)
class ListedUpgrades:
    """A page of views, newest first. The next page starts after `last_id`, which is None on the last page."""

    items: list[UpgradeView]
    last_id: str | None


class UpgradeListing:
    """Reads pages of upgrades. Statuses come from the results, since records are marked as ended a moment later."""

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
        """At most `limit` upgrades with ids below `before`, all of them or those with that status or user.

        A page may have fewer than `limit` upgrades and still have a next page. Raises StorageUnavailable and
        ResultsUnavailable.
        """
        user_ref = self._vault.user_ref(tenant_id, user_id) if user_id else None
        # A record marked as accepted may have ended a moment ago, so accepted ones are read for every status.
        outcomes = sorted({status, UpgradeStatus.ACCEPTED}) if status else []
        items: list[UpgradeView] = []
        for _ in range(_MAX_ROUNDS):
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
