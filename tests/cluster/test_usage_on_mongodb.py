"""Counting on a MongoDB-wire server: the tests of the ledger that break it on purpose."""

from collections.abc import Callable

import pytest

from shared.contracts.contract import new_id
from shared.storage.documents import Database
from shared.storage.mongodb import MongoDatabase

# Imported to be collected here, with this module's database.
from tests.component.test_usage_ledger import (  # noqa: F401
    store,
    test_a_batch_is_counted,
    test_a_late_count_of_a_forgotten_batch_is_refused,
    test_an_owner_that_slept_through_its_lease_counts_nothing_twice,
    test_duplicates_within_a_batch_and_across_batches,
    test_killed_at_each_step_and_started_again,
    test_killed_while_resuming_what_was_killed,
    test_killed_while_the_counters_are_raised,
    test_processes_that_overlap_die_and_steal_count_every_event_once,
)

pytestmark = pytest.mark.cluster


@pytest.fixture
def open_usage_database(mongodb_url: str) -> Callable[[], Database]:
    name = f"test_usage_{new_id().replace('-', '')[-12:]}"
    return lambda: MongoDatabase(mongodb_url, name)
