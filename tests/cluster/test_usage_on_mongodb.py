"""Runs the crash tests of counting on a server with MongoDB's wire protocol."""

from collections.abc import Callable

import pytest

from shared.contracts.contract import new_id
from shared.storage.documents import Database
from shared.storage.mongodb import MongoDatabase

# Imported so that pytest collects them here, with this module's database.
from tests.component.test_usage_ledger import (  # noqa: F401
    store,
    test_a_batch_is_counted,
    test_a_late_repeat_of_a_forgotten_batch_is_refused,
    test_an_owner_suspended_beyond_its_lease_counts_nothing_twice,
    test_duplicates_within_a_batch_and_across_batches,
    test_killed_at_each_step_and_started_again,
    test_killed_while_resuming_a_killed_batch,
    test_killed_while_the_counters_are_raised,
    test_overlapping_processes_that_crash_count_every_event_once,
)

pytestmark = pytest.mark.cluster


@pytest.fixture
def open_usage_database(mongodb_url: str) -> Callable[[], Database]:
    name = f"test_usage_{new_id().replace('-', '')[-12:]}"
    return lambda: MongoDatabase(mongodb_url, name)
