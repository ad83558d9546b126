"""The format of a tenant's admission state in Redis: the fields of its hash, and the text of a hold.

The gateway's admission scripts write it, the usage service's reconciliation reads it. The scripts repeat the field
names and the text of a hold in Lua: change both together, and keep stored states readable. `redis_keys` has the keys.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from shared.contracts.quota import Meter

METERS = (Meter.UPGRADES, Meter.TOKENS, Meter.EMBEDDINGS)
"""The order of amounts, in the text of a hold and in the arguments of scripts."""

RUN_FIELD = "run"
"""The run id of the Redis process in which the state was installed. In any other process the state does not count."""
VERSION_FIELD = "v"
"""The version of the counters."""
PLAN_FIELD = "plan"


def counter_field(meter: Meter) -> str:
    """The field with usage's counter of the meter."""
    return f"b{meter.value[0]}"


def limit_field(meter: Meter) -> str:
    """The field with the limit of the meter; -1 is unlimited."""
    return f"l{meter.value[0]}"


def held_field(meter: Meter) -> str:
    """The field with the sum of all holds on the meter."""
    return f"h{meter.value[0]}"


@dataclass(frozen=True)
class StoredHold:
    """One hold as Redis stores it.

    `ended`: the work has ended, and the amounts are what it used. `counted`: the counters include its upgrade, though
    its record was still open. `due`: when the gateway compares it with its record; None when that time is missing.
    """

    hold_id: str
    upgrades: int
    tokens: int
    embeddings: int
    ended: bool
    counted: bool
    due: datetime | None

    @staticmethod
    def from_text(hold_id: str, text: str, due: datetime | None) -> "StoredHold":
        """The reverse of `to_text`."""
        upgrades, tokens, embeddings, ended, counted = text.split(",")
        return StoredHold(hold_id, int(upgrades), int(tokens), int(embeddings), ended == "1", counted == "1", due)

    def to_text(self) -> str:
        """`upgrades,tokens,embeddings,ended,counted`; the last two are 0 or 1."""
        return f"{self.upgrades},{self.tokens},{self.embeddings},{int(self.ended)},{int(self.counted)}"

    @property
    def amounts(self) -> Mapping[Meter, int]:
        """The held amount of each meter."""
        return dict(zip(METERS, (self.upgrades, self.tokens, self.embeddings), strict=True))


def to_ms(moment: datetime) -> int:
    """Milliseconds since 1970, as Redis stores times."""
    return round(moment.timestamp() * 1000)


def from_ms(ms: float) -> datetime:
    """The reverse of `to_ms`."""
    return datetime.fromtimestamp(ms / 1000, UTC)
