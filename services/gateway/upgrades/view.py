"""An upgrade as its client sees it: the pipeline's placeholders replaced by the client's own values."""

from collections.abc import Mapping, Sequence

from services.gateway.upgrades.accepted_record import AcceptedRecord
from shared.contracts.contract import format_usd
from shared.contracts.problems import WarningCode
from shared.contracts.upgrade_http import CitationView, UpgradeView, UsageComponentView, UsageView
from shared.contracts.upgrade_results import UpgradeError, UpgradeResult, UpgradeStatus, UsageTotals
from shared.contracts.upgrade_tasks import ComponentUsage, SealedText, UpgradeTask, UpgradeWarning
from shared.observability.logs import get_logger
from shared.privacy.placeholders import PlaceholderMap
from shared.privacy.restoration import check_placeholders, restore
from shared.privacy.sealing import SealBroken, Vault

log = get_logger(__name__)


class UpgradeViews:
    """Makes views out of records and results. Holds the vault, so it alone can put values back in."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault

    def of(self, record: AcceptedRecord, result: UpgradeResult | None, user_prompt: str | None = None) -> UpgradeView:
        """The upgrade as it stands: ended with its result, or accepted while there is none.

        `user_prompt` is the prompt as its client sent it, for who has it at hand.
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
        """Without its values not even the prompt can be given back: placeholders would pass for what was typed."""
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
        """What each placeholder stands for: the client's own values, and what stages added. Raises SealBroken."""
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
    """What the model did to the placeholders of a prompt that it rewrote. Names placeholders, never values."""
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
    # Without its brackets, so that restoring the detail does not put the value in.
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
