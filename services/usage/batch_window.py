"""Why a batch is counted exactly once, in numbers that every part of the counting shares.

Batches are numbered by a registry, which holds the open ones. A counter keeps the numbers of the batches that were
added to it last, and is raised by a batch only where its list lacks the batch.

The list is bounded, so a batch must not be forgotten while somebody may still add it:
- A batch begins only while every open one is less than WINDOW behind it. So while a batch is open, all others that
  reach a counter have numbers less than WINDOW away from its own, on either side: fewer than 2 x WINDOW.
- A counter remembers RECENT = 2 x WINDOW batches: an open batch is never pushed out.
- A counter's floor is its highest batch less WINDOW. A batch at or below the floor is closed, by the first rule, and
  is refused. That stops a process that slept through the end of its batch.

A process has a batch for LEASE_SECONDS. The lease only decides when others may take a batch over, never whether
it is counted twice: two who finish the same batch raise each counter once.
"""

# Small, since every counter and rollup carries its list. Others get this far while the batch of a process that died
# waits for the end of its lease.
WINDOW = 8
RECENT = 2 * WINDOW
LEASE_SECONDS = 5.0


def may_begin(number: int, open_numbers: list[int]) -> bool:
    """Whether batch `number` may begin while these are open."""
    return all(number - other < WINDOW for other in open_numbers)


def floor_after(number: int) -> int:
    """The highest batch number that is surely closed once batch `number` is being counted; never below 0."""
    return max(0, number - WINDOW)
