"""Scores how well a chunk answers a query, from 0 to 1.

Two signals are scaled to 0..1 and combined:

dense    The cosine of query and chunk, stretched so that the cosine of unrelated texts becomes 0 and that of a good
         match 0.9. The two cosines differ from one embedding model to the next; `calibration.py` determines them.
lexical  BM25 divided by the best BM25 of the candidates (a min-max normalisation whose minimum is the theoretical 0),
         times the share of the query's words in the chunk, weighted by rarity. The share is needed because the best
         candidate has a relative BM25 of 1, however bad it is.

score = 1 - (1 - dense) * (1 - LEXICAL_TRUST * lexical), the noisy-or of the two: either signal suffices for a match,
for a chunk in other words as well as for one that shares only a product number with the query. Normalised scores are
combined instead of ranks, after Bruch, Gai and Ingber, "An Analysis of Fusion Functions for Hybrid Retrieval" (ACM
TOIS 42, 2023), and because a rank cannot be compared with a minimum score. Without a query vector (the model is
unavailable) the score is the lexical signal alone.
"""

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

LEXICAL_TRUST = 0.6
GOOD_MATCH = 0.9
MAX_QUERY_WORDS = 64
# A long prompt has few topics: a chunk with this many of its weightiest words is a full match.
FULL_MATCH_WORDS = 12
# Added to the number of candidates in the word weights, since no word is rare among one or two candidates.
_PRIOR_CHUNKS = 20

_WORD = re.compile(r"[^\W_]+(?:['’.][^\W_]+)*")
_HAS_NO_SPACES = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
_ENGLISH_STOP_WORDS = """
    a about above after all also am an and any are as at be because been before being between both but by can could
    did do does doing down each few for from further get give had has have having he her here hers him his how i if in
    into is it its just know let like make many may me might more most must my need no nor not now of off on once only
    or other our out over own please same shall she should so some such tell than that the their them then there these
    they this those through to too under until up us use very want was we were what when where which while who whom
    why will with would write you your
"""
_STOP_WORDS = frozenset(_ENGLISH_STOP_WORDS.split())


@dataclass(frozen=True)
class Calibration:
    """The score scale of a model: `floor` is the cosine of unrelated texts, `ceiling` that of a good match."""

    floor: float
    ceiling: float

    def score(self, cosine: float) -> float:
        """0 up to the floor, `GOOD_MATCH` at the ceiling, 1 for the same text; linear in between."""
        if cosine <= self.ceiling:
            return max(0.0, GOOD_MATCH * (cosine - self.floor) / (self.ceiling - self.floor))
        # Rises further, so that good matches keep their order.
        return min(1.0, GOOD_MATCH + (1 - GOOD_MATCH) * (cosine - self.ceiling) / max(1 - self.ceiling, 0.01))


@dataclass(frozen=True)
class Candidate:
    """A chunk to score. `cosine` is None without a query vector, `bm25` is 0 without a common word."""

    text: str
    cosine: float | None
    bm25: float


def mostly_unspaced(text: str) -> bool:
    """Whether most characters of a text belong to scripts that write no spaces between words."""
    return 2 * len(_HAS_NO_SPACES.findall(text)) > sum(map(str.isalnum, text))


def words(text: str) -> list[str]:
    """Splits a text into words to compare: lower case, without accents, English endings and stop words.

    Scripts without spaces are split into pairs of characters.
    """
    plain = text.casefold()
    if not plain.isascii():
        plain = unicodedata.normalize("NFKD", plain)
        plain = unicodedata.normalize("NFC", "".join(c for c in plain if not unicodedata.combining(c)))
        plain = plain.replace("đ", "d")
    found: list[str] = []
    for word in _WORD.findall(plain):
        if _HAS_NO_SPACES.search(word):
            found.extend(word[i : i + 2] for i in range(max(1, len(word) - 1)))
        elif word not in _STOP_WORDS:
            found.append(_stem(word))
    return found


@lru_cache(maxsize=1024)
def _words_of_chunk(text: str) -> frozenset[str]:
    return frozenset(words(text))


@lru_cache(maxsize=8192)
def _stem(word: str) -> str:
    """Strips common English endings. It may be crude, since query and chunk are treated alike."""
    if len(word) < 4 or any(map(str.isdigit, word)):
        return word
    for ending, replacement in (("ies", "y"), ("ing", ""), ("ed", ""), ("es", ""), ("s", "")):
        stem = word.removesuffix(ending)
        if stem != word and len(stem) >= 3 and not word.endswith(("ss", "us")):
            word = stem + replacement
            if ending in ("ing", "ed") and word[-1] == word[-2] and word[-1] not in "lsz":
                word = word[:-1]
            break
    return word.rstrip("e") if len(word) > 4 else word


def scores(query: str, candidates: Sequence[Candidate], calibration: Calibration | None) -> list[float]:
    """The score of each candidate for the query, in their order. Without a calibration, cosines are ignored."""
    coverage = _coverage(query, candidates)
    best = max((candidate.bm25 for candidate in candidates), default=0.0)
    result = []
    for candidate, covered in zip(candidates, coverage, strict=True):
        lexical = covered * candidate.bm25 / best if best > 0 else 0.0
        if candidate.cosine is None or calibration is None:
            result.append(lexical)
        else:
            result.append(1 - (1 - calibration.score(candidate.cosine)) * (1 - LEXICAL_TRUST * lexical))
    return result


def _coverage(query: str, candidates: Sequence[Candidate]) -> list[float]:
    """The weighted share of the query's words in each candidate; words in most candidates have little weight."""
    wanted = list(dict.fromkeys(words(query)))[:MAX_QUERY_WORDS]
    held = [_words_of_chunk(candidate.text) for candidate in candidates]
    weights: dict[str, float] = {}
    for word in wanted:
        holding = sum(1 for chunk in held if word in chunk)
        weights[word] = math.log(1 + (_PRIOR_CHUNKS + len(held) - holding) / (1 + holding))
    full = sum(sorted(weights.values(), reverse=True)[:FULL_MATCH_WORDS])
    if full <= 0:
        return [0.0] * len(candidates)
    return [min(1.0, sum(weights[word] for word in wanted if word in chunk) / full) for chunk in held]
