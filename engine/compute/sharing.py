"""Independent tasks that ranks share: each takes the next free one, and the first rank gets all results.

Tasks cost unequally much, so a fixed division would leave ranks waiting for the one with the largest. Here
every rank draws a ticket, does the task of that number and draws again. Tickets, tasks and results are in the
store in which the ranks found each other; no rank waits for another before all tasks are done.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Self

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store

from engine.command.interrupt import Stop
from engine.compute.distributed import Ranks, or_say_who_is_gone

POLL = 0.05  # seconds between two looks for what another rank did; a task takes longer
# What an error says when a rank is gone, of a command that keeps what it measured and of one that does not.
MEASURED_STAYS = "what was measured stays: see what it said, then give the same command again"
MEASURED_AGAIN = "see what it said, then give the same command again"


class SharedWork:
    """Tasks that all ranks work on, in a `with` block that every rank enters.

        with SharedWork(ranks, measure, stop) as work:
            if ranks.first:
                for index, result in work.results(tasks):
                    ...
            else:
                work.help()

    The block ends when all ranks have left it. One process does the tasks in their order.

    Args:
        ranks: those that share.
        do: does a task and returns its result; both are texts, since they travel.
        stop: when it is requested on any rank, all of them end after the task that they are doing.
        remedy: the end of the error when a rank is gone.
    """

    def __init__(self, ranks: Ranks, do: Callable[[str], str], stop: Stop, remedy: str = MEASURED_STAYS):
        self.ranks, self.do, self.stop, self.remedy = ranks, do, stop, remedy
        self.handed_out = 0  # tasks that the first rank put into the store
        self.arrived = 0  # results that the first rank took out of it
        self.ticket: int | None = None  # the number of the task that is this rank's next one

    def __enter__(self) -> Self:
        # The first rank says at once that it is ready to leave. All others say so at their end, and the sum
        # fails when one of them is gone before.
        if self.ranks.first and self.ranks.size > 1:
            self.leaving = self._say_goodbye()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an error torchrun ends the other ranks; waiting for them would hide it.
        if self.ranks.size == 1 or error is not None:
            return
        with or_say_who_is_gone(self.remedy):
            self._store.set("end", "")
            if not self.ranks.first:
                self.leaving = self._say_goodbye()
            self.leaving.wait()

    @property
    def stopped(self) -> bool:
        """Whether a signal on some rank ended the work early."""
        if self.ranks.size == 1:
            return self.stop.requested
        with or_say_who_is_gone(self.remedy):
            if self.stop.requested:
                self._store.set("end", "")
            # Whoever is first at the end of all tasks says so only after the last look here.
            return self._store.check(["end"])

    def results(self, tasks: Sequence[str]) -> Iterator[tuple[int, str]]:
        """The first rank takes part in `tasks`, and gets (index, result) of each as it is done.

        After a signal they end early, with all that was done.

        Raises:
            UserError: another rank is gone.
        """
        if self.ranks.size == 1:
            for i, task in enumerate(tasks):
                if self.stop.requested:
                    return
                yield i, self.do(task)
            return
        start, missing = self.handed_out, len(tasks)
        with or_say_who_is_gone(self.remedy):
            for task in tasks:
                self._store.set(f"task {self.handed_out}", task)
                self.handed_out += 1
        while missing:
            # Asked first: when all others have left, everything that they did is in the store.
            others_left = self._others_left()
            for number, result in self._new_results():
                missing -= 1
                yield number - start, result
            if missing and self.stopped and others_left:
                return
            if missing and (self.stopped or not self._do_next()):
                time.sleep(POLL)

    def help(self) -> None:
        """Another rank does tasks until there are no more.

        Raises:
            UserError: the first rank is gone.
        """
        while not self.stopped:
            if not self._do_next():
                time.sleep(POLL)

    def _do_next(self) -> bool:
        """Do the task of this rank's ticket; False if the first rank has not handed it out yet."""
        with or_say_who_is_gone(self.remedy):
            if self.ticket is None:
                self.ticket = self._store.add("tickets", 1) - 1
            name = f"task {self.ticket}"
            if not self._store.check([name]):
                return False
            task = self._store.get(name).decode()
        # Outside of the block above: an error of the task itself is not one of the connection.
        result = self.do(task)
        with or_say_who_is_gone(self.remedy):
            place = self._store.add("results", 1) - 1
            self._store.set(f"result {place}", f"{self.ticket} {result}")
        self.ticket = None
        return True

    def _new_results(self) -> Iterator[tuple[int, str]]:
        """(ticket, result) of what was done since the last look."""
        while True:
            with or_say_who_is_gone(self.remedy):
                name = f"result {self.arrived}"
                if not self._store.check([name]):
                    return
                ticket, _, result = self._store.get(name).decode().partition(" ")
            self.arrived += 1
            yield int(ticket), result

    def _others_left(self) -> bool:
        if not self.leaving.is_completed():
            return False
        with or_say_who_is_gone(self.remedy):
            self.leaving.wait()  # raises if one of them is gone instead
        return True

    def _say_goodbye(self) -> dist.Work:
        return dist.all_reduce(torch.zeros(1), group=self.ranks.host, async_op=True)

    @property
    def _store(self) -> Store:
        assert self.ranks.store is not None
        return self.ranks.store
