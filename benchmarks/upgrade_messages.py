"""Sample messages: upgrades of about 1 KB with a conversation and a deadline beyond every run; and preloaded topics."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TypeVar

from aiokafka import AIOKafkaProducer

from benchmarks.backends import Broker
from shared.contracts.contract import new_id, now_utc, period_of
from shared.contracts.topics import REWRITE, Topic, dead_letter_topic
from shared.contracts.upgrade_tasks import ConversationMessage, RewriteTask, Stage, UpgradeTask
from shared.messaging.cloudevents import encode
from shared.messaging.connection import connection_options
from shared.messaging.topics import create_topics

TaskT = TypeVar("TaskT", bound=UpgradeTask)

_PAYLOAD_BYTES = 1024
_TENANT = "bench-tenant"
_PUBLISH_BATCH = 500
_PROMPT = (
    "Explain to a new colleague how our team's leave policy works, which forms are needed and whom to ask, in at "
    "most 300 words. "
)


def make_task(model: type[TaskT], itinerary: Sequence[Stage], reply_to: str | None = None) -> TaskT:
    """Returns a task of about 1 KB of JSON."""
    now = now_utc()
    task = model(
        upgrade_id=new_id(),
        tenant_id=_TENANT,
        user_ref="u_0123456789abcdef0123456789abcdef",
        period=period_of(now),
        created_at=now,
        deadline=now + timedelta(hours=2),
        user_prompt=_PROMPT,
        conversation_history=[
            ConversationMessage(role="user", content="We write a handbook for the team."),
            ConversationMessage(role="assistant", content="Which part of it comes first?"),
        ],
        itinerary=list(itinerary),
        reply_to=reply_to,
    )
    missing = _PAYLOAD_BYTES - len(task.to_json())
    return task.model_copy(update={"user_prompt": (_PROMPT * 8)[: len(_PROMPT) + missing]})


def traceparent(*, sampled: bool) -> str:
    """Returns a new trace context, as the gateway starts for every request."""
    trace = new_id().replace("-", "")
    return f"00-{trace}-{trace[16:]}-{'01' if sampled else '00'}"


async def preload(broker: Broker, name: str, messages: int, *, sampled: bool = False) -> Topic:
    """Creates a topic like the rewrite inbox and publishes that many upgrades, spread over its partitions."""
    topic = replace(REWRITE, name=name)
    await create_topics(broker.settings(), (topic, dead_letter_topic(topic)))
    producer = AIOKafkaProducer(**connection_options(broker.settings()), acks="all", linger_ms=10)
    await producer.start()
    try:
        for start in range(0, messages, _PUBLISH_BATCH):
            sent = []
            for _ in range(min(_PUBLISH_BATCH, messages - start)):
                task = make_task(RewriteTask, [Stage.UPGRADER])
                value, headers = encode(
                    topic, task, source="gateway", subject=task.upgrade_id, traceparent=traceparent(sampled=sampled)
                )
                sent.append(await producer.send(name, value, key=task.upgrade_id.encode(), headers=headers))
            await asyncio.gather(*sent)
    finally:
        await producer.stop()
    return topic
