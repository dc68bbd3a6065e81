"""When a loop saves and stops, by the clock."""

import time
from typing import NamedTuple


class Saving(NamedTuple):
    """When a loop saves and stops.

    stop_at: the time of `time.monotonic` at which it stops; None: only a signal stops it.
    every: seconds between checkpoints in an epoch that takes longer.
    keep: how many checkpoints of ends of epochs stay.
    """

    stop_at: float | None = None
    every: float = 900.0
    keep: int = 1

    def time_is_over(self) -> bool:
        """Whether the loop stops now."""
        return self.stop_at is not None and time.monotonic() >= self.stop_at


class LastSave:
    """How long ago a loop saved, or began."""

    def __init__(self) -> None:
        self._at = time.monotonic()

    def now(self) -> None:
        """Note that it saved now."""
        self._at = time.monotonic()

    def seconds_ago(self) -> float:
        """Seconds since then."""
        return time.monotonic() - self._at
