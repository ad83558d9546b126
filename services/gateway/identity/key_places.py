"""A workspace has a place for each key that it may have, and no two keys have the same one.

The store sees to the second half with a unique index, so that the limit holds however many gateways make keys at once,
and a key that is gone, or was never finished, takes no place.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from shared.storage.documents import Index

MAX_KEYS = 100
PLACES = tuple(f"{number:02}" for number in range(MAX_KEYS))
PLACE_INDEX = Index(fields=("tenantId", "place"), unique=True, only_when_present="place")


def free_places(keys: Sequence[Mapping[str, Any]]) -> list[str]:
    """Places that none of a workspace's stored keys has. One that was stored without a place takes the last one."""
    taken = {key["place"] for key in keys if "place" in key}
    return [place for place in PLACES[: MAX_KEYS - sum("place" not in key for key in keys)] if place not in taken]
