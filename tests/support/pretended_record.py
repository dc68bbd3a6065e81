"""What is seen of a pretended GPU: waits, copies, operations and mixtures of devices."""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOMS = ("engine", "ofa", "oneshot", "predictors", "export", "benchmarks", "tests")


class Mixed(RuntimeError):
    """An operation got tensors of two devices, or a generator of another device than its tensor's."""


class Gpu:
    """What was seen of a pretended GPU.

    Args:
        root: the folder of the project, by which its own lines are told from torch's.

    Attributes:
        syncs: while recording: how often the host waited for the device, by `file:line function  why`.
        copies: while recording: how often something was copied without waiting, by the same.
        ops: while recording: how many operations, views included, ran on the device, by name.
        mixed: every mixture of devices, also where the error was caught.
    """

    def __init__(self, root: str | Path):
        self.root = f"{root}/"
        self.syncs: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()
        self.ops: Counter[str] = Counter()
        self.mixed: list[str] = []
        self.recording = False
        # Inside autograd's engine, and inside a call that was given tensors of the device, torch itself makes
        # tensors by the options of others. Those say `cpu` here and would say `cuda` on a GPU.
        self.in_engine = self.follows_tensors = False

    @contextmanager
    def record(self) -> Iterator["Gpu"]:
        """Count what happens in the block."""
        with self.set_flag("recording", True):
            yield self

    def waits(self) -> Counter[str]:
        """How often the host waited, by `file function: why`: an allow-list needs no line numbers."""
        found: Counter[str] = Counter()
        for entry, count in self.syncs.items():
            place, why = entry.split("  ")
            file, function = place.split(" ")
            found[f"{file.split(':')[0]} {function}: {why}"] += count
        return found

    def sync(self, why: str) -> None:
        """The host waits."""
        if self.recording:
            self.syncs[f"{self._place()}  {why}"] += 1

    def copied(self, why: str, waits: bool) -> None:
        """Something went from one device to the other."""
        if waits:
            self.sync(why)
        elif self.recording:
            self.copies[f"{self._place()}  {why}"] += 1

    def refuse(self, why: str) -> None:
        """A GPU would raise here."""
        self.mixed.append(f"{self._place()}  {why}")
        raise Mixed(self.mixed[-1])

    @contextmanager
    def set_flag(self, flag: str, value: bool) -> Iterator[None]:
        """Set a flag for the block."""
        before = getattr(self, flag)
        setattr(self, flag, value)
        try:
            yield
        finally:
            setattr(self, flag, before)

    def _place(self) -> str:
        """The innermost line of the project; `?` if nothing of it is being run."""
        frame = sys._getframe(1)
        while frame is not None:
            file = frame.f_code.co_filename.removeprefix(self.root)
            if file.split("/")[0] in ROOMS and "support/pretended" not in file:
                return f"{file}:{frame.f_lineno} {frame.f_code.co_name}"
            frame = frame.f_back
        return "? ?"
