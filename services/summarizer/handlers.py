"""Kafka in: an upgrade whose conversation is to be summarized."""

from services.summarizer.summarize import SummaryCache, SummaryModel, summarize
from shared.contracts.upgrade_tasks import StageOutput, UpgradeTask
from shared.messaging.recorded_stage import StageWork


def summarize_work(cache: SummaryCache, model: SummaryModel, version: str) -> StageWork:
    """The summarizer's work on one message, for the stage that records it."""

    async def work(task: UpgradeTask) -> StageOutput:
        return await summarize(task, cache, model, version)

    return work
