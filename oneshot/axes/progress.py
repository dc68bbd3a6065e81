"""How far a search is: what schedules of temperatures, penalties and learning rates depend on."""

from typing import NamedTuple


class Progress(NamedTuple):
    """Where a search is.

    Args:
        epoch: the current one, from 0 on.
        epochs: of the whole search.
        tuning: the current epoch of what may follow a search, from 1 on; 0 before. `epoch` is then the last
            one of the search, where every schedule ends.
    """

    epoch: int
    epochs: int
    tuning: int = 0

    @property
    def number(self) -> int:
        """Of the epoch, what follows the search included: what draws are seeded with."""
        return self.epoch + self.tuning

    @property
    def passed(self) -> float:
        """Share of the epochs before this one: 0 at first, below 1 at last."""
        return self.epoch / self.epochs

    def between(self, start: float, end: float) -> float:
        """Linear from `start` in the first epoch to `end` in the last."""
        # One epoch less: the last epoch reaches `end`.
        return start + (end - start) * self.epoch / max(1, self.epochs - 1)
