"""Determines the score scale of each embedding model, so that a minimum score has the same meaning with every model.

The cosines of one model lie between 0 and 0.8, those of another between 0.7 and 0.95. For the models listed here the
scale is built in. Any other model embeds a fixed set of text pairs (`calibration_pairs.json`) once: the cosines of its
unrelated pairs mark the low end of the scale, those of its related pairs the high end. The result is kept in the store
and shared by all replicas; no tenant is charged for it.
"""

import asyncio
import contextlib
import hashlib
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain
from math import hypot
from operator import mul
from pathlib import Path
from typing import Any

from services.rag.search.embeddings import EmbeddingModel
from services.rag.search.scoring import Calibration, mostly_unspaced
from services.rag.store import Space, from_now
from shared.contracts.contract import derived_id, format_utc, now_utc
from shared.llm.errors import ModelError
from shared.observability.logs import get_logger
from shared.service.single_flight import SingleFlight
from shared.storage.documents import Collection, StorageUnavailable

_RETRY_SECONDS = 60.0
_MEASURE_SECONDS = 45.0
_LEASE_SECONDS = 60.0
_POLL_SECONDS = 0.5
_MAX_WAIT_SECONDS = 5.0
# A model whose related pairs are less than this above its unrelated ones does not distinguish them.
_MIN_SPREAD = 0.02

# By prefix of the model's name; measured with questions about related and unrelated texts of a few sentences.
_BUILT_IN = (
    ("offline-", Calibration(0.12, 0.48)),
    ("text-embedding-3-", Calibration(0.18, 0.58)),
    ("text-embedding-ada-002", Calibration(0.73, 0.88)),
)
_DEFAULT = Calibration(0.2, 0.65)

_PAIRS_JSON = (Path(__file__).parent / "calibration_pairs.json").read_bytes()
_PAIRS: dict[str, list[tuple[str, str]]] = json.loads(_PAIRS_JSON)
# Part of the record's id: a changed set of pairs is measured again.
_PAIRS_DIGEST = hashlib.sha256(_PAIRS_JSON).hexdigest()[:16]

log = get_logger(__name__)


@dataclass(frozen=True)
class Scale:
    """The calibrations of one model: for scripts with spaces between words, and for those without.

    They are separate because a model that was trained on English alone maps all Chinese texts to similar vectors.
    """

    spaced: Calibration
    unspaced: Calibration

    def calibration_for(self, query: str) -> Calibration:
        return self.unspaced if mostly_unspaced(query) else self.spaced


def calibration_of(model: str, *, floor: float | None = None, ceiling: float | None = None) -> Calibration:
    """The built-in calibration of a model, or the default; `floor` and `ceiling` replace its bounds where given."""
    return _with_bounds(_built_in(model) or _DEFAULT, floor, ceiling)


class Calibrations:
    """Returns the scale of an embedding space, and measures it on first use. Component."""

    def __init__(
        self, model: EmbeddingModel, records: Collection, *, floor: float | None = None, ceiling: float | None = None
    ) -> None:
        self._model = model
        self._records = records
        self._floor = floor
        self._ceiling = ceiling
        self._measured: dict[str, Scale] = {}
        self._retry_at: dict[str, float] = {}
        self._attempts: SingleFlight[str, None] = SingleFlight()

    async def start(self) -> None: ...

    async def stop(self, grace_seconds: float) -> None:
        await self._attempts.stop()

    async def scale_of(self, space: Space, *, deadline: datetime) -> Scale:
        """The scale for cosines in `space`; a default while it cannot be measured.

        Waits for a measurement for 5 seconds at most, and never beyond the deadline. After a failed one, searches use
        the default for a minute before the next attempt.
        """
        bounds = (self._floor, self._ceiling)
        if _built_in(space.model) is None and None in bounds:
            await self._wait_for_measurement(space, deadline)
            measured = self._measured.get(space.key)
            if measured is not None:
                return Scale(_with_bounds(measured.spaced, *bounds), _with_bounds(measured.unspaced, *bounds))
        calibration = calibration_of(space.model, floor=self._floor, ceiling=self._ceiling)
        return Scale(calibration, calibration)

    async def _wait_for_measurement(self, space: Space, deadline: datetime) -> None:
        if space.key in self._measured or time.monotonic() < self._retry_at.get(space.key, 0.0):
            return
        seconds = min(_MAX_WAIT_SECONDS, (deadline - now_utc()).total_seconds())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._attempts.run(space.key, lambda: self._attempt(space))

    async def _attempt(self, space: Space) -> None:
        try:
            self._measured[space.key] = await self._load_or_measure(space)
        except (ModelError, StorageUnavailable, _SpaceChanged) as error:
            log.warning("embedding_model_not_calibrated", model=space.model, error=type(error).__name__)
            self._retry_at[space.key] = time.monotonic() + _RETRY_SECONDS

    async def _load_or_measure(self, space: Space) -> Scale:
        """Raises ModelError, StorageUnavailable, and _SpaceChanged when the model is not that of `space`."""
        id = derived_id("calibration", _PAIRS_DIGEST, space.key)
        while True:
            stored, claimed = await self._claim(id, space)
            if stored["scale"] is not None:
                return Scale(Calibration(*stored["scale"]["spaced"]), Calibration(*stored["scale"]["unspaced"]))
            if claimed:
                break
            await asyncio.sleep(_POLL_SECONDS)
        try:
            scale = await self._measure(space)
        except BaseException:
            await self._records.update_one({"_id": id}, {"$set": {"leaseUntil": ""}})
            raise
        document = {name: [bounds.floor, bounds.ceiling] for name, bounds in vars(scale).items()}
        await self._records.update_one({"_id": id}, {"$set": {"scale": document, "measuredAt": format_utc(now_utc())}})
        log.info("embedding_model_calibrated", model=space.model, **document)
        return scale

    async def _claim(self, id: str, space: Space) -> tuple[dict[str, Any], bool]:
        """The record of that id, and whether this process is the one to measure."""
        lease = from_now(_LEASE_SECONDS)
        stored, inserted = await self._records.insert_if_absent(
            {"_id": id, "model": space.model, "dimension": space.dimension, "leaseUntil": lease, "scale": None}
        )
        if inserted or stored["scale"] is not None:
            return stored, inserted
        taken = await self._records.find_one_and_update(
            {"_id": id, "scale": None, "leaseUntil": {"$lt": from_now(0)}}, {"$set": {"leaseUntil": lease}}
        )
        return taken or stored, taken is not None

    async def _measure(self, space: Space) -> Scale:
        texts = list(dict.fromkeys(chain.from_iterable(chain.from_iterable(_PAIRS.values()))))
        deadline = now_utc() + timedelta(seconds=_MEASURE_SECONDS)
        embedded = await self._model.embed(texts, operation="calibrate", deadline=deadline)
        if Space(embedded.usage.model, len(embedded.vectors[0])) != space:
            raise _SpaceChanged
        vectors = dict(zip(texts, embedded.vectors, strict=True))
        return Scale(_calibration(vectors, unspaced=False), _calibration(vectors, unspaced=True))


class _SpaceChanged(Exception):
    """Another model answers under the same name now."""


def _built_in(model: str) -> Calibration | None:
    return next((known for prefix, known in _BUILT_IN if model.startswith(prefix)), None)


def _with_bounds(calibration: Calibration, floor: float | None, ceiling: float | None) -> Calibration:
    low = calibration.floor if floor is None else floor
    high = calibration.ceiling if ceiling is None else ceiling
    return Calibration(low, max(high, low + 0.01))


def _calibration(vectors: dict[str, list[float]], *, unspaced: bool) -> Calibration:
    """From the upper quartile of the unrelated pairs to the median of the related ones."""
    cosines = {
        kind: [_cosine(vectors[left], vectors[right]) for left, right in pairs if mostly_unspaced(right) is unspaced]
        for kind, pairs in _PAIRS.items()
    }
    floor = statistics.quantiles(cosines["unrelated"], n=4)[2]
    ceiling = statistics.median(cosines["related"])
    if ceiling - floor < _MIN_SPREAD:
        # Only a nearly identical text may count as a match.
        floor, ceiling = min(floor, 1 - _MIN_SPREAD), 1.0
    return Calibration(round(floor, 4), round(ceiling, 4))


def _cosine(left: Sequence[float], right: Sequence[float]) -> float:
    length = hypot(*left) * hypot(*right)
    return sum(map(mul, left, right)) / length if length else 0.0
