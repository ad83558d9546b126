"""How many API keys a workspace may have, where two gateways share a MongoDB-wire server."""

from collections.abc import Callable

import pytest

from shared.contracts.contract import new_id
from shared.storage.documents import Database
from shared.storage.mongodb import MongoDatabase

# Imported to be collected here, with this module's database.
from tests.component.test_gateway_api_keys import (  # noqa: F401
    collections,
    test_keys_from_before_there_were_places_count_as_well,
    test_nobody_is_refused_while_there_is_room,
    test_replicas_that_race_make_no_more_than_there_may_be,
    test_the_last_key_can_be_asked_for_again,
)

pytestmark = pytest.mark.cluster


@pytest.fixture
def open_gateway_database(mongodb_url: str) -> Callable[[], Database]:
    name = f"test_gateway_{new_id().replace('-', '')[-12:]}"
    return lambda: MongoDatabase(mongodb_url, name)
