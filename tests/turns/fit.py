"""Fits the weights of the mode hint to the labelled turns: `python -m tests.turns.fit` writes them and prints figures.

Logistic regression with an L2 penalty by Newton's method; both classes weigh the same. The threshold is the lowest one
at which at most `MOST_WRONG` of the new topics it was fitted to are taken for follow-ups.
"""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from services.upgrader.reading import mode
from services.upgrader.reading.cues import cues_for
from services.upgrader.reading.language import detect_language
from services.upgrader.reading.mode_features import Reading, features_of
from tests.turns.labelled import Turn, labelled_turns

PENALTY = 2.0
MOST_WRONG = 0.045
_WEIGHTS = Path(mode.__file__).parent / "mode_weights.json"
Matrix = npt.NDArray[np.float64]


def features(turn: Turn) -> dict[str, float]:
    """The features as the hint sees them."""
    language = detect_language(turn.prompt, turn.history)
    text = turn.prompt.replace("’", "'")
    return features_of(text, Reading(text.lower(), "\n".join(turn.said).lower(), cues_for(language)), language)


def fitted(turns: list[Turn]) -> dict[str, float]:
    """Weights by feature, with `bias` and `threshold`."""
    found = [features(turn) for turn in turns]
    names = sorted({name for item in found for name in item})
    x: Matrix = np.array([[item.get(name, 0.0) for name in names] + [1.0] for item in found])
    y: Matrix = np.array([float(turn.is_follow_up) for turn in turns])
    balance = np.where(y == 1, 1.0, y.sum() / (1 - y).sum())
    weights = np.zeros(x.shape[1])
    for _ in range(100):
        likely = 1 / (1 + np.exp(-x @ weights))
        gradient = x.T @ ((likely - y) * balance) + PENALTY * weights
        hessian = (x * (likely * (1 - likely) * balance)[:, None]).T @ x + PENALTY * np.eye(len(weights))
        weights -= np.linalg.solve(hessian, gradient)
    scores = x @ weights
    threshold = float(np.quantile(scores[y == 0], 1 - MOST_WRONG))
    named = {name: round(float(weight), 3) for name, weight in zip(names, weights, strict=False)}
    return {"bias": round(float(weights[-1]), 3), "threshold": round(threshold + 0.001, 3), **named}


def rates(turns: list[Turn]) -> tuple[float, float]:
    """The shares of follow-ups that are seen, and of new topics that are taken for follow-ups."""
    guessed = [mode.guess_mode(turn.prompt, turn.history).mode == "contextual" for turn in turns]
    seen = [guess for guess, turn in zip(guessed, turns, strict=True) if turn.is_follow_up]
    wrong = [guess for guess, turn in zip(guessed, turns, strict=True) if not turn.is_follow_up]
    return sum(seen) / len(seen), sum(wrong) / len(wrong)


if __name__ == "__main__":
    _WEIGHTS.write_text(json.dumps(fitted(labelled_turns(kept_for_test=False)), indent=1) + "\n", encoding="utf-8")
    for name, turns in (
        ("fitted to", labelled_turns(kept_for_test=False)),
        ("kept", labelled_turns(kept_for_test=True)),
    ):
        seen, wrong = rates(turns)
        print(f"{name}: {len(turns)} turns, {seen:.1%} of follow-ups seen, {wrong:.1%} of new topics taken for one")
