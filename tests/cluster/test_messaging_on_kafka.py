"""Runs the tests of the stage runner, the batch runner and consumer groups on Apache Kafka."""

import pytest

from tests.component.messaging_setup import OTHER_BROKERS
from tests.component.messaging_setup import broker_settings as broker_settings
from tests.component.messaging_setup import running_producer as running_producer
from tests.component.test_messaging_batch_runner import (
    test_a_transient_error_is_retried_and_nothing_is_committed_meanwhile,
    test_batches_of_several_topics_are_handled_and_committed,
    test_events_that_fail_alone_are_dead_lettered,
)
from tests.component.test_messaging_groups import (
    test_a_fifth_member_of_four_partitions_stays_healthy,
    test_a_rebalance_waits_briefly_for_a_slow_handler_whose_late_finish_does_not_commit,
)
from tests.component.test_messaging_stage_runner import (
    test_a_retry_does_not_delay_other_messages,
    test_a_thousand_messages_run_at_once_on_four_partitions,
    test_an_undecodable_record_is_dead_lettered_with_its_bytes_and_the_partition_moves_on,
    test_nothing_is_committed_while_the_dead_letter_cannot_be_written,
    test_stop_lets_messages_in_progress_finish,
    test_the_span_of_uncommitted_records_is_bounded,
    test_unfinished_messages_are_delivered_again_after_a_kill,
)

pytestmark = pytest.mark.cluster

__all__ = [
    "test_a_fifth_member_of_four_partitions_stays_healthy",
    "test_a_rebalance_waits_briefly_for_a_slow_handler_whose_late_finish_does_not_commit",
    "test_a_retry_does_not_delay_other_messages",
    "test_a_thousand_messages_run_at_once_on_four_partitions",
    "test_a_transient_error_is_retried_and_nothing_is_committed_meanwhile",
    "test_an_undecodable_record_is_dead_lettered_with_its_bytes_and_the_partition_moves_on",
    "test_batches_of_several_topics_are_handled_and_committed",
    "test_events_that_fail_alone_are_dead_lettered",
    "test_nothing_is_committed_while_the_dead_letter_cannot_be_written",
    "test_stop_lets_messages_in_progress_finish",
    "test_the_span_of_uncommitted_records_is_bounded",
    "test_unfinished_messages_are_delivered_again_after_a_kill",
]


@pytest.fixture
def kafka_servers(apache_kafka: str) -> str:
    """The address of a broker with idempotent producers, which accepts no shorter session time-out."""
    OTHER_BROKERS[apache_kafka] = {"kafka_enable_idempotence": True, "kafka_session_timeout_ms": 6000}
    return apache_kafka
