"""The registry of Kafka topics, from which topics are created at start and schemas, docs and AsyncAPI are generated."""

from dataclasses import dataclass
from enum import StrEnum

from shared.contracts.contract import Contract
from shared.contracts.documents import DocumentIndexed, DocumentSubmitted
from shared.contracts.prompts import PromptChanged
from shared.contracts.quota import QuotaThresholdReached
from shared.contracts.upgrade_results import UpgradeCompleted
from shared.contracts.upgrade_tasks import RetrieveTask, RewriteTask, Stage, SummarizeTask
from shared.contracts.usage import UsageRecorded

KIB = 1024
MIB = 1024 * KIB
HOUR_MS = 3600 * 1000
DAY_MS = 24 * HOUR_MS

# An upgrade's deadline is at most ten minutes away. If the readers of an inbox are down for longer than its retention,
# the gateway publishes the lost upgrades again from its own records, until each has ended.
_UPGRADE_INBOX_MS = 1 * HOUR_MS
_DEAD_LETTERS_MS = 30 * DAY_MS
_DEAD_LETTERS_WITH_CONTENT_MS = 7 * DAY_MS

DEAD_LETTER_SUFFIX = ".dlq"
DEAD_LETTER_HEADROOM = 64 * KIB


class TopicKind(StrEnum):
    """What a topic is for: work for one stage, events for any reader, or records that could not be handled."""

    INBOX = "stage inbox"
    FACT = "fact"
    DEAD_LETTERS = "dead letters"


@dataclass(frozen=True)
class Topic:
    """One topic. `key` is the field that records are keyed by; their order is not guaranteed.

    `has_content`: its records contain redacted text of upgrades. `model` is None when records have no schema.
    `compacted`: the broker keeps the last record of each key for as long as the topic exists.
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
    compacted: bool = False

    @property
    def dead_letter_name(self) -> str:
        return self.name + DEAD_LETTER_SUFFIX

    @property
    def segment_ms(self) -> int:
        """How long the broker writes to one segment. It deletes whole segments, once all their records are expired."""
        return min(self.retention_ms // 6, DAY_MS)

    @property
    def kept(self) -> str:
        """The retention in words, such as `7 days`."""
        if self.compacted:
            return "the last record of each key"
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
    description="Whether a submitted document was indexed, or why it failed.",
)
PROMPTS_CHANGED = Topic(
    name="prompts.changed.v1",
    kind=TopicKind.FACT,
    model=PromptChanged,
    owner="upgrader",
    producers=("upgrader",),
    consumers=("internal teams",),
    key="promptId",
    description="A version of a prompt template as it is now: its text, its stage and its share of users.",
    compacted=True,
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
    PROMPTS_CHANGED,
)

INBOX_OF: dict[Stage, Topic] = {
    Stage.SUMMARIZER: SUMMARIZE,
    Stage.RAG: RETRIEVE,
    Stage.UPGRADER: REWRITE,
}


def dead_letter_topic(source: Topic) -> Topic:
    """The topic for records of `source` that its consumer cannot handle. It has no schema: the bytes are unchanged."""
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
    """Whether one of the services reads the topic."""
    return any(consumer != "internal teams" for consumer in topic.consumers)


def all_topics() -> tuple[Topic, ...]:
    """Every topic to create: the registered ones, and a dead-letter topic for each that a service reads."""
    return TOPICS + tuple(dead_letter_topic(topic) for topic in TOPICS if consumed_by_us(topic))


def topic_named(name: str) -> Topic:
    """The topic or dead-letter topic of that name. Raises KeyError when there is none."""
    return _BY_NAME[name]


_BY_NAME = {topic.name: topic for topic in all_topics()}
