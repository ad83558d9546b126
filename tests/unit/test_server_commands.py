"""What the local servers are started with."""

import uuid

from deploy.local.server_commands import kafka_cluster_id


def test_a_kafka_cluster_id_is_never_taken_for_an_option() -> None:
    made = iter([uuid.UUID("f8000000-0000-4000-8000-000000000000"), uuid.UUID("00000000-0000-4000-8000-000000000001")])
    assert kafka_cluster_id(lambda: next(made)) == "AAAAAAAAQACAAAAAAAAAAQ"
