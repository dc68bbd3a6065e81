"""Two real processes share tasks: all are done once, by whoever is free, and an end of one is noticed."""

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from engine.command.interrupt import stop_on_signal
from engine.compute.distributed import ALONE, join
from engine.compute.sharing import SharedWork
from engine.errors import UserError

Run = Callable[..., list[Any]]


def _shared(batches: list[list[str]]) -> tuple[list[list[tuple[int, str]]], list[str]]:
    """What arrived of each list of tasks, in this order, and what this rank did."""
    did: list[str] = []

    def slow_on_the_first(task: str) -> str:
        time.sleep(0.5 if task == "0" else 0.02)
        did.append(task)
        return f"{task} done"

    with join("cpu") as (ranks, _), stop_on_signal() as stop:
        arrived = []
        with SharedWork(ranks, slow_on_the_first, stop) as work:
            if ranks.first:
                arrived = [list(work.results(tasks)) for tasks in batches]
                assert not work.stopped
            else:
                work.help()
        return arrived, did


def test_every_task_is_done_once_by_whoever_is_free(pair: Run) -> None:
    batches = [[str(i) for i in range(12)], [str(i) for i in range(12, 15)], []]
    (arrived, first), (_, second) = pair(_shared, batches)
    assert sorted(first + second, key=int) == [str(i) for i in range(15)]
    # While one rank did the long task, the other one did all others of the list.
    assert min(len(first), len(second)) < 6
    for tasks, found in zip(batches, arrived, strict=True):
        assert [result for _, result in sorted(found)] == [f"{task} done" for task in tasks]


def test_one_process_does_them_in_order() -> None:
    with stop_on_signal() as stop, SharedWork(ALONE, str.upper, stop) as work:
        for index, result in work.results("abc"):
            assert result == "ABC"[index]
            stop.requested = index == 1
        assert work.stopped and index == 1


def _one_is_told_to_stop() -> int:
    def do(task: str) -> str:
        time.sleep(0.05)
        if task == "3":
            os.kill(os.getpid(), signal.SIGTERM)
        return task

    with join("cpu") as (ranks, _), stop_on_signal() as stop, SharedWork(ranks, do, stop) as work:
        if ranks.first:
            done = len(list(work.results([str(i) for i in range(100)])))
            assert work.stopped
            return done
        work.help()
    return 0


def test_a_signal_to_one_ends_all_with_what_is_done(pair: Run) -> None:
    done, _ = pair(_one_is_told_to_stop)
    assert 4 <= done < 20


def _one_fails() -> None:
    def do(task: str) -> str:
        time.sleep(0.02)
        if ranks.rank == 1:
            raise UserError("This image is damaged.")
        return task

    with join("cpu") as (ranks, _), stop_on_signal() as stop, SharedWork(ranks, do, stop) as work:
        if ranks.first:
            list(work.results([str(i) for i in range(6)]))
        else:
            work.help()


def test_an_error_of_one_ends_the_others_with_a_sentence(pair: Run) -> None:
    first, second = pair(_one_fails)
    assert isinstance(second, UserError) and str(second) == "This image is damaged."
    assert isinstance(first, UserError)
    assert "processes that work together ended" in str(first) and "measured stays" in str(first)


@pytest.mark.parametrize("tasks", [[], ["0"]])
def test_nearly_nothing_to_do(pair: Run, tasks: list[str]) -> None:
    (arrived, _), _ = pair(_shared, [tasks])
    assert len(arrived[0]) == len(tasks)
