"""Scores of chunks: near 0 for unrelated text, near 1 for a text that answers the query."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.rag.search.calibration import calibration_of
from services.rag.search.scoring import Candidate, scores, words

OFFLINE = calibration_of("offline-embedding")


def test_dense_alone_carries_a_match_in_other_words() -> None:
    [score] = scores("vacation", [Candidate("Employees get 25 days of paid leave.", 0.45, 0.0)], OFFLINE)
    assert score > 0.8


def test_words_alone_carry_a_match_that_the_vectors_miss() -> None:
    candidates = [
        Candidate("Part KX-4711 needs a torque of 12 Nm.", 0.1, 4.0),
        Candidate("Part KX-9999 needs grease.", 0.1, 1.0),
    ]
    right, wrong = scores("KX-4711 torque", candidates, OFFLINE)
    assert right > 0.5
    assert wrong < 0.2


def test_the_best_of_unrelated_candidates_scores_low() -> None:
    """One shared common word makes the best BM25 of all candidates, but no match."""
    [score] = scores(
        "Plan a birthday party for the children of my team with games and cake",
        [Candidate("The team files expense reports within two weeks.", 0.08, 1.2)],
        OFFLINE,
    )
    assert score < 0.15


def test_without_a_vector_the_words_decide_alone() -> None:
    match, other = scores(
        "refund policy returns",
        [
            Candidate("Refund policy: returns within 30 days.", None, 3.0),
            Candidate("Our policy on visitors.", None, 0.4),
        ],
        OFFLINE,
    )
    assert match > 0.9
    assert other < 0.1


def test_among_good_matches_the_right_words_come_first() -> None:
    candidates = [
        Candidate("Article 121 regulates matter number 121.", 0.8, 1.0),
        Candidate("Article 217 regulates matter number 217.", 0.79, 3.0),
    ]
    other, right = scores("what does article 217 regulate", candidates, OFFLINE)
    assert right > other


def test_each_model_has_its_own_scale() -> None:
    assert calibration_of("text-embedding-ada-002").score(0.73) == 0
    assert calibration_of("text-embedding-3-small").score(0.58) == pytest.approx(0.9)
    assert calibration_of("somebody-elses").score(0.2) == 0
    assert calibration_of("somebody-elses", floor=0.5, ceiling=0.6).score(0.55) == pytest.approx(0.45)
    assert calibration_of("somebody-elses", floor=0.6, ceiling=0.5).score(0.7) > 0.9
    assert all(calibration_of(model).score(1.0) == 1 for model in ("offline-x", "text-embedding-3-large", "other"))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("employees", "employee"),
        ("policies", "policy"),
        ("billing", "bills"),
        ("running", "run"),
        ("Ärger", "arger"),
        ("nghỉ", "nghi"),
        ("returned", "returns"),
        ("leave", "leaves"),
    ],
)
def test_forms_of_a_word_are_one_word(one: str, other: str) -> None:
    assert words(one) == words(other)


def test_scripts_without_spaces_are_compared_in_pairs() -> None:
    assert set(words("休假")) <= set(words("員工每年有二十五天的帶薪休假"))


@given(
    st.text(max_size=80),
    st.lists(
        st.builds(
            Candidate,
            text=st.text(max_size=80),
            cosine=st.none() | st.floats(-1, 1),
            bm25=st.floats(0, 50, allow_nan=False),
        ),
        max_size=6,
    ),
)
def test_scores_stay_between_0_and_1(query: str, candidates: list[Candidate]) -> None:
    found = scores(query, candidates, OFFLINE)
    assert len(found) == len(candidates)
    assert all(0 <= score <= 1 for score in found)
