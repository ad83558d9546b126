"""Embeddings and token counts by WordLlama, whose package includes the weights, so no network is needed."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import wordllama
from wordllama import WordLlama

MODEL = "offline-wordllama-256"
DIMENSIONS = 256
_TOKENS_AT_A_TIME = 4096

Vector = npt.NDArray[np.float32]


class Embedder:
    """Loads in about half a second; thread-safe."""

    def __init__(self) -> None:
        model = WordLlama.load(cache_dir=Path(wordllama.__file__).parent, disable_download=True)
        self._vectors: npt.NDArray[np.float32] = model.embedding
        self._tokenizer = model.tokenizer
        self._tokenizer.no_padding()

    def tokens(self, text: str) -> int:
        """Returns the number of tokens in the text."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def embed(self, text: str) -> tuple[Vector, int]:
        """Returns the mean of the token vectors, scaled to length 1, and the number of tokens."""
        ids = self._tokenizer.encode(text or " ", add_special_tokens=False).ids
        total = np.zeros(DIMENSIONS, dtype=np.float32)
        # In pieces: all vectors of a long text at once need a kilobyte of memory per token.
        for start in range(0, len(ids), _TOKENS_AT_A_TIME):
            total += self._vectors[ids[start : start + _TOKENS_AT_A_TIME]].sum(axis=0)
        length = float(np.linalg.norm(total))
        return (total / length if length > 0 else total), len(ids)

    def similarity(self, one: Vector, other: Vector) -> float:
        """Returns the cosine, -1 to 1."""
        return float(one @ other)
