"""The limit of API keys in a workspace holds when two replicas share a MongoDB-wire server."""

from collections.abc import Callable

import pytest

from shared.contracts.contract import new_id
from shared.storage.documents import Database
from shared.storage.mongodb import MongoDatabase

# Imported to be collected here, with this module's database.
from tests.component.test_gateway_api_keys import (  # noqa: F401
    collections,
    test_no_key_is_refused_below_the_limit,
    test_racing_replicas_keep_the_limit,
    test_stored_keys_without_a_place_count,
    test_the_last_key_can_be_created_again_with_its_id,
)

pytestmark = pytest.mark.cluster


@pytest.fixture
def open_gateway_database(mongodb_url: str) -> Callable[[], Database]:
    name = f"test_gateway_{new_id().replace('-', '')[-12:]}"
    return lambda: MongoDatabase(mongodb_url, name)
