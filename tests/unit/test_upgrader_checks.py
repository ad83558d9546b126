"""What is called an upgrade: good rewrites pass, and nothing that a bad model sends does."""

import pytest

from services.upgrader.rewriting.checks import Check, Material, Verdict, check, has_structure, is_simple_question
from tests.unit.upgrader_rewrites import CASES, SPOILERS, spoiled

SPOILED = list(spoiled())


@pytest.mark.parametrize("name", CASES)
def test_a_good_rewrite_passes(name: str) -> None:
    assert check(CASES[name].good, CASES[name].material).failed == ()


@pytest.mark.parametrize(("material", "text"), [case[1:] for case in SPOILED], ids=[case[0] for case in SPOILED])
def test_a_spoilt_rewrite_is_no_upgrade(material: Material, text: str) -> None:
    assert check(text, material).failed


def test_the_spoilt_rewrites_are_many() -> None:
    assert len(SPOILED) >= 100
    assert len(SPOILERS) >= 12


@pytest.mark.parametrize(
    ("spoiler", "expected"),
    [
        ("echo", Check.ECHO),
        ("polite answer", Check.ANSWER),
        ("marker leak", Check.LEAK),
        ("template leak", Check.LEAK),
        ("field leak", Check.LEAK),
        ("loop", Check.REPETITION),
        ("flood", Check.LENGTH),
        ("nothing", Check.EMPTY),
    ],
)
def test_the_check_that_fails_has_the_right_name(spoiler: str, expected: Check) -> None:
    case = CASES["email"]
    assert expected in check(SPOILERS[spoiler](case), case.material).failed


def test_a_question_of_one_fact_needs_no_headings() -> None:
    material = Material("What is the capital of Peru?", "full", "en")
    assert check("What is the capital of Peru today, and what is its population?", material).failed == ()
    assert is_simple_question("What is the capital of Peru?")
    assert not is_simple_question("explain recursion")
    assert not is_simple_question("What is it? And why does it matter so much to people in the north of the country?")


def test_a_task_without_structure_is_no_upgrade() -> None:
    verdict = check("Explain recursion in a simple way for a beginner.", Material("explain recursion", "full", "en"))
    assert verdict.failed == (Check.STRUCTURE,)


def test_headings_in_a_follow_up_fail() -> None:
    case = CASES["how much"]
    text = "ROLE: a vet\nTASK: Say how much hydrogen peroxide my dog needs after eating chocolate."
    assert Check.HEADINGS in check(text, case.material).failed


def test_a_number_that_a_follow_up_replaces_may_go() -> None:
    material = Material("make it 5 items instead of 3", "contextual", "en", ("List 3 fruits.", "Apple, pear, plum."))
    assert check("List 5 fruits, 5 items in all.", material).failed == ()
    assert Check.LOST_PARTS in check("List 4 fruits.", material).failed


def test_the_old_topic_stays_out_of_a_new_one() -> None:
    case = CASES["peru"]
    text = "Write a Python function that sorts a list of dictionaries by a key."
    assert {Check.OFF_TOPIC, Check.OLD_TOPIC} <= set(check(text, case.material).failed)


def test_the_hint_names_what_was_lost() -> None:
    case = CASES["email"]
    verdict = check(case.good.replace("<EMAIL_1>", "the client"), case.material)
    assert verdict.lost == ("<EMAIL_1>",)
    assert "<EMAIL_1>" in verdict.hint


def test_the_checks_vouch_for_less_where_they_saw_little() -> None:
    vague = check(CASES["recursion"].good, CASES["recursion"].material)
    plain = check(CASES["email"].good, CASES["email"].material)
    assert vague.confidence_cap < plain.confidence_cap <= 0.95
    invented = CASES["email"].good + " Mention order 90210."
    assert check(invented, CASES["email"].material).confidence_cap < plain.confidence_cap
    assert Verdict().confidence_cap == 1.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ROLE\nx\n\nTASK\ny", True),
        ("Role: x\nTask: y", True),
        ("# Role\nx\n# Task\ny", True),
        ("**Role**\nx\n\n**Task**\ny", True),
        ("角色：x\n任务：y", True),
        ("役割\nx\n\nタスク\ny", True),
        ("One sentence. Another one.", False),
        ("- a: b\n- c: d", False),
        ("Note: one thing only.", False),
        ("```\nROLE: x\nTASK: y\n```", False),
    ],
)
def test_headings_are_seen(text: str, expected: bool) -> None:
    assert has_structure(text) is expected
