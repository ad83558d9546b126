"""A consumer's membership in its group, through aiokafka's private coordinator, which has no public equivalent."""

import time
from collections.abc import Collection, Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.protocol.group import LeaveGroupRequest
from aiokafka.structs import OffsetAndMetadata

from shared.messaging.errors import NotReading

# ruff: noqa: SLF001

NO_GENERATION = -1
REVOKE_WAIT_SECONDS = 1.5
"""How long a member finishes records in progress at a rebalance, while the whole group waits for it."""


def check_membership(joined: bool, last_joined: float | None, grace_seconds: float) -> None:
    """Raises NotReading unless the consumer is in its group, or was assigned partitions within `grace_seconds`.

    `last_joined` is the monotonic time of the last assignment. The grace covers rebalances, which are normal; owning
    no partition is normal too.
    """
    if last_joined is None:
        raise NotReading("has not joined its group yet")
    if not joined and time.monotonic() - last_joined > grace_seconds:
        raise NotReading("is not in its group")


def generation_of(consumer: AIOKafkaConsumer) -> int:
    """The generation of the group that the consumer is a member of; NO_GENERATION when it is not a member."""
    coordinator: Any = consumer._coordinator
    return coordinator.generation if coordinator is not None else NO_GENERATION


def rejoin(consumer: AIOKafkaConsumer) -> None:
    """Makes the consumer join again, under its member id if the broker still accepts it."""
    coordinator: Any = consumer._coordinator
    if coordinator is not None:
        coordinator.request_rejoin()


async def commit_once(
    consumer: AIOKafkaConsumer, generation: int, offsets: Mapping[TopicPartition, int], log_id: str = ""
) -> bool:
    """Commits as a member of `generation`. Returns False without a request when the member has left that generation.

    `log_id` identifies the log of the offsets and is stored with them for `offsets_of_log`. Raises KafkaError.

    `consumer.commit` is not safe here: it retries while there is no coordinator. If the member has lost its generation
    by then, the commit is sent without one. A broker with an empty log accepts that, and the new log would be read
    from an offset of the old one.
    """
    coordinator: Any = consumer._coordinator
    if generation == NO_GENERATION or coordinator.generation != generation or coordinator.coordinator_id is None:
        return False
    commit = {partition: OffsetAndMetadata(offset, log_id) for partition, offset in offsets.items()}
    await coordinator._do_commit_offsets(None, commit)
    return True


async def offsets_of_log(
    consumer: AIOKafkaConsumer, partitions: Collection[TopicPartition], log_id: str
) -> dict[TopicPartition, int]:
    """Where to start reading: at the committed offset, or at the beginning if none was committed for this log.

    A member that has not noticed yet that its broker was replaced can commit an offset of the old log to the new one.
    Apache Kafka returns the id that was stored with it, so it is ignored here. An offset without an id is valid: an
    operator's tool has set it, or the broker stores no ids (and rejects commits of unknown members instead). Raises
    KafkaError.
    """
    coordinator: Any = consumer._coordinator
    committed = await coordinator.fetch_committed_offsets(list(partitions))
    beginnings = await consumer.beginning_offsets(list(partitions))
    return {
        partition: found.offset
        if (found := committed.get(partition)) is not None and found.offset >= 0 and found.metadata in ("", log_id)
        else beginnings[partition]
        for partition in partitions
    }


async def leave_first_generation(consumer: AIOKafkaConsumer) -> None:
    """Leaves a group in generation 0. aiokafka does not: it takes that for no membership, which then has to expire."""
    coordinator: Any = consumer._coordinator
    if coordinator is None or coordinator.generation != 0 or coordinator._group_instance_id is not None:
        return
    try:
        await coordinator._send_req(LeaveGroupRequest(coordinator.group_id, coordinator.member_id))
    except KafkaError:
        return  # the membership ends with its session time-out
