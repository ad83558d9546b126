"""The few things that aiokafka knows of a group member and does not say in public. Its version is pinned for this."""
# ruff: noqa: SLF001

from collections.abc import Collection, Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.protocol.group import LeaveGroupRequest
from aiokafka.structs import OffsetAndMetadata

NO_GENERATION = -1


def generation_of(consumer: AIOKafkaConsumer) -> int:
    """The group's generation that this member belongs to; NO_GENERATION while it belongs to none."""
    coordinator: Any = consumer._coordinator
    return coordinator.generation if coordinator is not None else NO_GENERATION


def rejoin(consumer: AIOKafkaConsumer) -> None:
    """Has the member join anew, under its id where the broker still knows it."""
    coordinator: Any = consumer._coordinator
    if coordinator is not None:
        coordinator.request_rejoin()


async def commit_once(
    consumer: AIOKafkaConsumer, generation: int, offsets: Mapping[TopicPartition, int], log_id: str = ""
) -> bool:
    """Commits as a member of `generation`; False, and nothing sent, when the member has left that generation.

    `log_id` says which log the offsets are of; it is kept with them for `offsets_of_log`.

    `consumer.commit` will not do. It waits and retries as long as there is no coordinator, and by then the member may
    have lost its generation: the commit then goes out as one of no member at all, which a broker with an empty log
    accepts, and the new log would be read from an offset of the old one. Raises KafkaError.
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
    """Where to go on in each partition: at the committed offset, or at the beginning when there is none of this log.

    A member that has not noticed yet that its broker was replaced can commit an offset of the old log to the new one.
    On Apache Kafka that offset carries the old log's id. One without an id counts: it was set by an operator's tool, or
    the broker keeps none, as the embedded one, which takes no commits of members that it does not know. Raises
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
    """Leaves a group whose generation is 0, which aiokafka takes for no membership and would leave to time out."""
    coordinator: Any = consumer._coordinator
    if coordinator is None or coordinator.generation != 0 or coordinator._group_instance_id is not None:
        return
    try:
        await coordinator._send_req(LeaveGroupRequest(coordinator.group_id, coordinator.member_id))
    except KafkaError:
        return  # The session time-out ends the membership.
