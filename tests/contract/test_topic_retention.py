"""Retention of topics with content of upgrades, which an erasure cannot remove from the log."""

from annotated_types import Le

from services.gateway.settings import GatewaySettings
from shared.contracts.topics import DAY_MS, HOUR_MS, INBOX_OF, TOPICS, TopicKind, all_topics, dead_letter_topic

CONTENT_FIELDS = {"user_prompt", "conversation_history", "upgraded_prompt"}


def test_topics_say_whether_they_hold_content() -> None:
    for topic in TOPICS:
        assert topic.model is not None
        assert topic.has_content == bool(CONTENT_FIELDS & topic.model.model_fields.keys()), topic.name
        assert dead_letter_topic(topic).has_content == topic.has_content


def test_content_has_the_shortest_retention() -> None:
    inboxes = {topic.name for topic in TOPICS if topic.has_content and topic.kind is TopicKind.INBOX}
    assert inboxes == {topic.name for topic in INBOX_OF.values()}
    for topic in all_topics():
        if topic.has_content:
            assert topic.retention_ms <= (HOUR_MS if topic.kind is TopicKind.INBOX else 7 * DAY_MS), topic.name


def test_log_segments_are_short_compared_with_the_retention() -> None:
    for topic in all_topics():
        assert topic.segment_ms <= topic.retention_ms / 6


def test_an_inbox_outlives_every_deadline() -> None:
    limits = GatewaySettings.model_fields["upgrade_deadline_seconds"].metadata
    [longest] = [float(str(limit.le)) for limit in limits if isinstance(limit, Le)]
    assert all(topic.retention_ms > 2 * longest * 1000 for topic in INBOX_OF.values())


def test_facts_are_kept_for_a_week_as_promised() -> None:
    assert {topic.retention_ms for topic in TOPICS if topic.kind is TopicKind.FACT} == {7 * DAY_MS}
