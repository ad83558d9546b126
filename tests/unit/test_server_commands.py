"""Command lines of the local servers."""

import uuid

from deploy.local.server_commands import kafka_cluster_id


def test_a_kafka_cluster_id_never_starts_with_a_dash() -> None:
    made = iter([uuid.UUID("f8000000-0000-4000-8000-000000000000"), uuid.UUID("00000000-0000-4000-8000-000000000001")])
    assert kafka_cluster_id(lambda: next(made)) == "AAAAAAAAQACAAAAAAAAAAQ"
