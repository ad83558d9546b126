"""After a restart, the service continues with the stored state of its predecessor."""

from pathlib import Path

from shared.contracts.topics import RETRIEVE, REWRITE
from shared.contracts.upgrade_tasks import RetrieveTask, Stage, UpgradeTask
from shared.messaging.topics import create_topics
from tests.component.rag_parts import task_for
from tests.component.rag_world import LEAVE, rag_settings, running
from tests.conftest import eventually
from tests.model_server import ModelServer
from tests.model_server import scripted_model as scripted_model


async def test_a_restart_continues_with_the_stored_state(
    kafka_servers: str, redis_url: str, scripted_model: ModelServer, tmp_path: Path
) -> None:
    task = task_for("t-restart", "How many days of paid leave per year?")
    settings = rag_settings(kafka_servers, redis_url, scripted_model.url, tmp_path)
    await create_topics(settings)
    async with running(settings) as world:
        document = (await world.upload("t-restart", LEAVE.encode(), filename="a.txt")).json()["id"]
        await world.indexed("t-restart", document)
        before = await world.retrieved(task)
    calls = len(scripted_model.received("embeddings"))
    async with running(settings) as world:
        assert await world.search("t-restart", "paid leave") != []
        task_again = RetrieveTask(**task.model_dump())
        await world.producer.publish(RETRIEVE, task.upgrade_id, task_again)

        async def handed_over_twice() -> bool:
            tasks = [data for data in await world.events(REWRITE) if isinstance(data, UpgradeTask)]
            outputs = [data.output_of(Stage.RAG) for data in tasks if data.upgrade_id == task.upgrade_id]
            return len(outputs) == 2 and all(output == before for output in outputs)

        assert await eventually(handed_over_twice, 20)
    # One more: the query of the search. The upgrade's output was recorded.
    assert len(scripted_model.received("embeddings")) == calls + 1
