"""How much of a batch is in the model at once: what the step says, and less once memory has run out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch

from surgeon.backend.out_of_memory import is_out_of_memory

T = TypeVar("T")
Part = Sequence[int]


class MicroBatches:
    """Splits examples into parts. `limit` is the most examples of a part, None as long as memory has never run out."""

    def __init__(self, tell: Callable[[str], None], *, may_halve: bool) -> None:
        """`tell` is told when parts become smaller; without `may_halve` they never do."""
        self.limit: int | None = None
        self._tell, self._may_halve = tell, may_halve

    def split(self, numbers: Part, size: int) -> list[Part]:
        """Return parts of at most `size` examples."""
        size = min(size, self.limit or size)
        return [numbers[at : at + size] for at in range(0, len(numbers), size)]

    def run(self, numbers: Part, size: int, run: Callable[[list[Part]], T], reset: Callable[[], None]) -> T:
        """Return what `run` makes of the parts; when memory runs out, `reset` and run all again in parts of half.

        Raises:
            RuntimeError, MemoryError: a single example does not fit, or parts may not become smaller.
        """
        while True:
            parts = self.split(numbers, size)
            try:
                return run(parts)
            except (MemoryError, RuntimeError) as error:
                longest = len(parts[0])
                if not self._may_halve or longest == 1 or not is_out_of_memory(error):
                    raise
            # Only here has the error let go of the tensors of the calls that it came through.
            self.limit = longest // 2
            reset()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self._tell(
                f"memory ran out with {longest} examples at once: going on with {self.limit}, the mean is the same"
            )


def add_weighted(totals: dict[str, float], figures: Mapping[str, float], weight: float) -> None:
    """Add the figures of a part to those of the whole."""
    for name, value in figures.items():
        totals[name] = totals.get(name, 0.0) + value * weight


def summed(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the sums of figures by name."""
    totals: dict[str, float] = {}
    for part in parts:
        add_weighted(totals, part, 1.0)
    return totals
