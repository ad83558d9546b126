"""The registry of topics. Topics are created from it at start; schemas, docs and AsyncAPI are checked against it."""

from dataclasses import dataclass
from enum import StrEnum

from shared.contracts.contract import Contract
from shared.contracts.documents import DocumentIndexed, DocumentSubmitted
from shared.contracts.quota import QuotaThresholdReached
from shared.contracts.upgrade_results import UpgradeCompleted
from shared.contracts.upgrade_tasks import RetrieveTask, RewriteTask, Stage, SummarizeTask
from shared.contracts.usage import UsageRecorded

KIB = 1024
MIB = 1024 * KIB
HOUR_MS = 3600 * 1000
DAY_MS = 24 * HOUR_MS

# An upgrade has at most ten minutes until its deadline. What an inbox has lost by then, since its readers were away for
# longer than this, the gateway hands to the upgrader again and again from its own records, until the upgrade has ended.
_UPGRADE_INBOX_MS = 1 * HOUR_MS
_DEAD_LETTERS_MS = 30 * DAY_MS
_DEAD_LETTERS_WITH_CONTENT_MS = 7 * DAY_MS

DEAD_LETTER_SUFFIX = ".dlq"
DEAD_LETTER_HEADROOM = 64 * KIB


class TopicKind(StrEnum):
    INBOX = "stage inbox"
    FACT = "fact"
    DEAD_LETTERS = "dead letters"


@dataclass(frozen=True)
class Topic:
    """One topic. `key` says what records are keyed by; order is not promised. Sizes are bytes, retention is ms.

    `has_content`: its records hold what was said in upgrades, with placeholders for personal values.
    """

    name: str
    kind: TopicKind
    model: type[Contract] | None
    owner: str
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    key: str
    partitions: int = 4
    retention_ms: int = 7 * DAY_MS
    max_message_bytes: int = 1 * MIB
    description: str = ""
    has_content: bool = False

    @property
    def dead_letter_name(self) -> str:
        return self.name + DEAD_LETTER_SUFFIX

    @property
    def segment_ms(self) -> int:
        """For how long one file of the log is written to. A file goes whole, once all in it is older than is kept."""
        return min(self.retention_ms // 6, DAY_MS)

    @property
    def kept(self) -> str:
        """How long records are kept, in words."""
        unit, size = ("day", DAY_MS) if self.retention_ms >= DAY_MS else ("hour", HOUR_MS)
        count = self.retention_ms // size
        return f"{count} {unit}" + ("s" if count != 1 else "")


SUMMARIZE = Topic(
    name="upgrades.summarize.v1",
    kind=TopicKind.INBOX,
    model=SummarizeTask,
    owner="summarizer",
    producers=("gateway",),
    consumers=("summarizer",),
    key="upgradeId",
    retention_ms=_UPGRADE_INBOX_MS,
    max_message_bytes=2 * MIB,
    description="Upgrades whose conversation is to be summarized.",
    has_content=True,
)
RETRIEVE = Topic(
    name="upgrades.retrieve.v1",
    kind=TopicKind.INBOX,
    model=RetrieveTask,
    owner="rag",
    producers=("gateway", "summarizer"),
    consumers=("rag",),
    key="upgradeId",
    retention_ms=_UPGRADE_INBOX_MS,
    max_message_bytes=2 * MIB,
    description="Upgrades for which the tenant's documents are to be searched.",
    has_content=True,
)
REWRITE = Topic(
    name="upgrades.rewrite.v1",
    kind=TopicKind.INBOX,
    model=RewriteTask,
    owner="upgrader",
    producers=("gateway", "summarizer", "rag"),
    consumers=("upgrader",),
    key="upgradeId",
    retention_ms=_UPGRADE_INBOX_MS,
    max_message_bytes=2 * MIB,
    description="Upgrades whose prompt is to be rewritten, or ended as well as still possible.",
    has_content=True,
)
COMPLETED = Topic(
    name="upgrades.completed.v1",
    kind=TopicKind.FACT,
    model=UpgradeCompleted,
    owner="upgrader",
    producers=("upgrader",),
    consumers=("usage", "internal teams"),
    key="tenantId",
    description="How an upgrade ended, redacted.",
    has_content=True,
)
USAGE_RECORDED = Topic(
    name="usage.recorded.v1",
    kind=TopicKind.FACT,
    model=UsageRecorded,
    owner="usage",
    producers=("summarizer", "rag", "upgrader"),
    consumers=("usage", "internal teams"),
    key="tenantId",
    max_message_bytes=64 * KIB,
    description="What one operation used.",
)
QUOTA_THRESHOLD_REACHED = Topic(
    name="quota.threshold-reached.v1",
    kind=TopicKind.FACT,
    model=QuotaThresholdReached,
    owner="usage",
    producers=("usage",),
    consumers=("internal teams",),
    key="tenantId",
    max_message_bytes=64 * KIB,
    description="A tenant has used 80 % or all of a meter's limit for the month.",
)
DOCUMENTS_SUBMITTED = Topic(
    name="documents.submitted.v1",
    kind=TopicKind.INBOX,
    model=DocumentSubmitted,
    owner="rag",
    producers=("rag",),
    consumers=("rag",),
    key="tenantId",
    max_message_bytes=64 * KIB,
    description="Documents that are stored and wait to be indexed; ids only.",
)
DOCUMENTS_INDEXED = Topic(
    name="documents.indexed.v1",
    kind=TopicKind.FACT,
    model=DocumentIndexed,
    owner="rag",
    producers=("rag",),
    consumers=("internal teams",),
    key="tenantId",
    max_message_bytes=64 * KIB,
    description="What became of a submitted document.",
)

TOPICS: tuple[Topic, ...] = (
    SUMMARIZE,
    RETRIEVE,
    REWRITE,
    COMPLETED,
    USAGE_RECORDED,
    QUOTA_THRESHOLD_REACHED,
    DOCUMENTS_SUBMITTED,
    DOCUMENTS_INDEXED,
)

INBOX_OF: dict[Stage, Topic] = {
    Stage.SUMMARIZER: SUMMARIZE,
    Stage.RAG: RETRIEVE,
    Stage.UPGRADER: REWRITE,
}


def dead_letter_topic(source: Topic) -> Topic:
    """Where records of `source` go that its consumer cannot handle. No schema: the original bytes are kept."""
    return Topic(
        name=source.dead_letter_name,
        kind=TopicKind.DEAD_LETTERS,
        model=None,
        owner=source.owner,
        producers=tuple(c for c in source.consumers if c != "internal teams"),
        consumers=("operators",),
        key=source.key,
        partitions=1,
        retention_ms=_DEAD_LETTERS_WITH_CONTENT_MS if source.has_content else _DEAD_LETTERS_MS,
        max_message_bytes=source.max_message_bytes + DEAD_LETTER_HEADROOM,
        description=f"Records of {source.name} that could not be handled.",
        has_content=source.has_content,
    )


def consumed_by_us(topic: Topic) -> bool:
    return any(consumer != "internal teams" for consumer in topic.consumers)


def all_topics() -> tuple[Topic, ...]:
    """Every topic to create: the registry and the dead-letter topic of each one that a service consumes."""
    return TOPICS + tuple(dead_letter_topic(topic) for topic in TOPICS if consumed_by_us(topic))


def topic_named(name: str) -> Topic:
    """The topic of that name, dead-letter topics included; KeyError when there is none."""
    return _BY_NAME[name]


_BY_NAME = {topic.name: topic for topic in all_topics()}
