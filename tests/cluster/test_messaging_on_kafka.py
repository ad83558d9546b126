"""The behaviour of the stage runner, the batch runner and their groups, on Apache Kafka."""

import pytest

from tests.component.messaging_setup import OTHER_BROKERS
from tests.component.messaging_setup import broker_settings as broker_settings
from tests.component.messaging_setup import running_producer as running_producer
from tests.component.test_messaging_batch_runner import (
    test_a_transient_error_is_retried_and_nothing_is_committed_meanwhile as test_batches_are_retried,
)
from tests.component.test_messaging_batch_runner import (
    test_batches_of_several_topics_are_handled_and_committed as test_batches_are_handled,
)
from tests.component.test_messaging_batch_runner import (
    test_poison_goes_to_the_dead_letters_one_by_one as test_poison_in_a_batch,
)
from tests.component.test_messaging_groups import (
    test_a_rebalance_waits_a_moment_for_a_slow_handler_and_its_late_finish_commits_nothing as test_a_rebalance,
)
from tests.component.test_messaging_groups import (
    test_five_members_on_four_partitions_run_quietly as test_five_members,
)
from tests.component.test_messaging_stage_runner import (
    test_a_retry_holds_up_nobody_else as test_retries,
)
from tests.component.test_messaging_stage_runner import (
    test_a_thousand_messages_run_at_once_on_four_partitions as test_a_thousand_at_once,
)
from tests.component.test_messaging_stage_runner import (
    test_nothing_is_committed_while_the_dead_letter_cannot_be_written as test_dead_letters_first,
)
from tests.component.test_messaging_stage_runner import (
    test_poison_is_dead_lettered_with_its_bytes_and_the_partition_moves_on as test_poison,
)
from tests.component.test_messaging_stage_runner import (
    test_stop_lets_what_is_in_work_finish as test_draining,
)
from tests.component.test_messaging_stage_runner import (
    test_the_span_of_uncommitted_records_is_bounded as test_the_span,
)
from tests.component.test_messaging_stage_runner import (
    test_what_was_not_finished_comes_again_after_a_kill as test_redelivery,
)

pytestmark = pytest.mark.cluster

__all__ = [
    "test_a_rebalance",
    "test_a_thousand_at_once",
    "test_batches_are_handled",
    "test_batches_are_retried",
    "test_dead_letters_first",
    "test_draining",
    "test_five_members",
    "test_poison",
    "test_poison_in_a_batch",
    "test_redelivery",
    "test_retries",
    "test_the_span",
]


@pytest.fixture
def kafka_servers(apache_kafka: str) -> str:
    """The same tests, another broker: it has idempotent producers and takes no shorter session time-out."""
    OTHER_BROKERS[apache_kafka] = {"kafka_enable_idempotence": True, "kafka_session_timeout_ms": 6000}
    return apache_kafka
