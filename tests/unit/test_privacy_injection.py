"""Injection scanner: precision and recall on the labelled corpus, positions, and what `remove` leaves."""

import pytest

from shared.privacy.injection import remove, scan
from tests.unit.privacy_injection_cases import HARMLESS, HOSTILE


@pytest.mark.parametrize("text", HOSTILE)
def test_an_instruction_to_the_model_is_found(text: str) -> None:
    assert scan(text)


@pytest.mark.parametrize("text", HARMLESS)
def test_a_harmless_sentence_is_left_alone(text: str) -> None:
    assert scan(text) == []
    assert remove(text) == (text, [])


def test_precision_and_recall(capsys: pytest.CaptureFixture[str]) -> None:
    found = sum(bool(scan(text)) for text in HOSTILE)
    wrongly = sum(bool(scan(text)) for text in HARMLESS)
    precision, recall = found / (found + wrongly), found / len(HOSTILE)
    with capsys.disabled():
        print(f"\ninjection: precision {precision:.3f}, recall {recall:.3f} on {len(HOSTILE)} + {len(HARMLESS)} texts")
    assert precision >= 0.97
    assert recall >= 0.97
