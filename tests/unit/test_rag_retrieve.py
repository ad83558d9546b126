"""The queries of the retrieve stage, and the renumbering of a document's placeholders."""

from services.rag.search.retrieve import renumbered, search_queries
from shared.contracts.token_bounds import QUERY_CHARACTERS
from shared.contracts.upgrade_tasks import Stage, StageOutput, Summary
from shared.privacy.placeholders import PlaceholderMap, restore
from tests.component.rag_parts import task_for

LEAVE_TALK = (
    ("user", "How many days of paid leave do our employees get?"),
    ("assistant", "25 days."),
    ("user", "Write that up for the intranet."),
)


def test_a_first_prompt_is_its_own_query() -> None:
    assert search_queries(task_for("t", "How many days of leave?")) == ["How many days of leave?"]


def test_a_follow_up_is_searched_with_its_context() -> None:
    alone, referring = search_queries(task_for("t", "and for contractors?", LEAVE_TALK))
    assert alone == "and for contractors?"
    assert "paid leave" in referring
    assert referring.endswith("and for contractors?")
    assert "25 days." not in referring


def test_the_context_is_the_summary_where_there_is_one() -> None:
    task = task_for("t", "shorter", LEAVE_TALK)
    summary = Summary(goal="An intranet page on paid leave", facts=["25 days a year"])
    task = task.model_copy(update={"outputs": [StageOutput(stage=Stage.SUMMARIZER, summary=summary)]})
    assert search_queries(task)[1] == "An intranet page on paid leave\n25 days a year\nshorter"


def test_a_long_prompt_stands_alone() -> None:
    prompt = "Explain in detail how the expense process works, who approves what, and which receipts are needed. " * 40
    assert search_queries(task_for("t", prompt, LEAVE_TALK)) == [prompt.strip()[:QUERY_CHARACTERS]]


def test_placeholders_never_collide_with_the_prompts() -> None:
    placeholders = PlaceholderMap({"EMAIL": 2, "PHONE": 1})
    values = {"<EMAIL_1>": "ann@example.org", "<EMAIL_2>": "bob@example.org"}
    text = renumbered("Ask <EMAIL_2> or <EMAIL_1>, not <EMAIL_2>.", values, placeholders)
    assert text == "Ask <EMAIL_3> or <EMAIL_4>, not <EMAIL_3>."
    assert restore(text, placeholders.values()) == "Ask bob@example.org or ann@example.org, not bob@example.org."


def test_the_same_value_of_two_documents_is_one_placeholder() -> None:
    placeholders = PlaceholderMap({"EMAIL": 1})
    first = renumbered("<EMAIL_1>", {"<EMAIL_1>": "ann@example.org"}, placeholders)
    second = renumbered("<EMAIL_7>", {"<EMAIL_7>": "ann@example.org"}, placeholders)
    assert first == second == "<EMAIL_2>"


def test_a_literal_that_looks_like_a_placeholder_is_restored() -> None:
    placeholders = PlaceholderMap({"EMAIL": 3})
    text = renumbered("Write <EMAIL_1> in the form.", {"<EMAIL_1>": "<EMAIL_1>"}, placeholders)
    assert "<EMAIL_1>" not in text  # that one is the prompt's
    assert restore(text, placeholders.values()) == "Write <EMAIL_1> in the form."
