"""A model of admission in plain Python, with which the tests compare the scripts."""

from dataclasses import dataclass, field, replace

METERS = 3
Amounts = tuple[int, int, int]
NOTHING: Amounts = (0, 0, 0)


@dataclass(frozen=True)
class ModelHold:
    size: Amounts
    ended: bool = False
    counted: bool = False


def plus(left: Amounts, right: Amounts) -> Amounts:
    return (left[0] + right[0], left[1] + right[1], left[2] + right[2])


@dataclass
class ModelState:
    """One tenant's state in one period; `limits` below 0 are unlimited."""

    base: Amounts
    limits: Amounts
    version: int
    plan_version: int
    holds: dict[str, ModelHold] = field(default_factory=dict)

    def held(self) -> Amounts:
        total = NOTHING
        for hold in self.holds.values():
            total = plus(total, hold.size)
        return total

    def refusing_meter(self, need: Amounts) -> int | None:
        held = self.held()
        for meter in range(METERS):
            limit = self.limits[meter]
            if limit >= 0 and need[meter] > 0 and self.base[meter] + held[meter] + need[meter] > limit:
                return meter
        return None

    def settle(self, hold_id: str, spent: Amounts) -> None:
        hold = self.holds.get(hold_id)
        if hold is None or hold.ended:
            return
        left = (0 if hold.counted else spent[0], spent[1], spent[2])
        self._put(hold_id, replace(hold, size=left, ended=True))

    def left(self, hold_id: str, amounts: Amounts) -> None:
        hold = self.holds.get(hold_id)
        if hold is not None:
            self._put(hold_id, replace(hold, size=amounts, ended=True))

    def counted_open(self, hold_id: str) -> None:
        hold = self.holds.get(hold_id)
        if hold is not None:
            changed = replace(hold, size=(0, hold.size[1], hold.size[2]), counted=True)
            if hold.ended:
                self._put(hold_id, changed)
            else:
                self.holds[hold_id] = changed

    def _put(self, hold_id: str, hold: ModelHold) -> None:
        if hold.size == NOTHING:
            del self.holds[hold_id]
        else:
            self.holds[hold_id] = hold
