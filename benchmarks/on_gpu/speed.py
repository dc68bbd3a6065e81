"""Part (b): images a second and peak memory of a step, each way of running it beside the plain network.

Times are of CUDA events around each step, after a warm-up; the median counts. The plain network runs in the
same process, after ours.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from benchmarks.on_gpu.jobs import Job, Size, method_of, retrained, searched_images, searched_text, supernet
from benchmarks.on_gpu.parts import Context, Part
from benchmarks.on_gpu.plain import PlainStep, plain_recurrent, plain_search, plain_supernet
from engine.compute.precision import USUAL_PRECISION, TrainingPrecision, precision_on, training_in
from oneshot.objectives.text import TextSettings
from oneshot.spaces.cells import find_space

WARM_UP = 5  # steps: they allocate, choose algorithms and fill caches
MOST_STEPS = 60


class Timed(NamedTuple):
    """A step that is timed: how it is made for a way of running (eager, graphs, compiled); the plain one."""

    name: str
    make: Callable[[torch.device, bool, str], Job]
    plain: Callable[[torch.device, bool], PlainStep] | None = None
    precision: TrainingPrecision = "tf32"  # the command's own
    alike: bool = True  # whether all steps are alike, so that they can be graphs and compiled


def _search(
    name: str, space_name: str, kind: str, full: Size, settings: dict[str, Any] | None = None
) -> Timed:
    space = find_space(space_name)
    toy = Size(16, 1 if space_name == "nasbench201" else 3, 2, 8)  # the plain networks have 16 channels

    def make(device: torch.device, is_toy: bool, way: str) -> Job:
        method = method_of(name, space, settings or {}, few=False)
        return searched_images(method, space, toy if is_toy else full, device, way=way)

    def plain(device: torch.device, is_toy: bool) -> PlainStep:
        return plain_search(kind, toy if is_toy else full, device)

    title = " ".join([name, space_name, *(settings or {}).values()])
    return Timed(title, make, plain, alike=name != "gdas")


def _supernet(space_name: str, batch: int, side: int) -> Timed:
    def sizes(is_toy: bool) -> tuple[str, int, int]:
        return ("small32", 2, 32) if is_toy else (space_name, batch, side)

    def make(device: torch.device, is_toy: bool, way: str) -> Job:
        return supernet(*sizes(is_toy), device, way=way)

    def plain(device: torch.device, is_toy: bool) -> PlainStep:
        return plain_supernet(*sizes(is_toy), device)

    return Timed(f"sandwich {space_name}", make, plain, USUAL_PRECISION, alike=False)


def _recurrent() -> Timed:
    space = find_space("recurrent")

    def make(device: torch.device, is_toy: bool, way: str) -> Job:
        method = method_of("darts", space, {"order": "first"}, few=False)
        if is_toy:
            return searched_text(method, device, torch.float32, TextSettings(hidden=8, bptt=4), 4, 20, way)
        return searched_text(method, device, batch=256, way=way)

    def plain(device: torch.device, is_toy: bool) -> PlainStep:
        return (
            plain_recurrent(4, 8, 4, 20, device) if is_toy else plain_recurrent(256, 300, 35, 10_000, device)
        )

    return Timed("darts recurrent", make, plain, alike=False)


def _retraining() -> Timed:
    def make(device: torch.device, is_toy: bool, way: str) -> Job:
        return (
            retrained(4, 3, 2, 32, device, way=way) if is_toy else retrained(36, 20, 96, 32, device, way=way)
        )

    return Timed("retraining DARTS_V2", make)


def timed_steps() -> list[Timed]:
    """At the batch sizes that were published."""
    return [
        _search("darts", "darts", "first", Size(16, 8, 64), {"order": "first"}),
        _search("darts", "darts", "second", Size(16, 8, 64), {"order": "second"}),
        _search("pc_darts", "darts", "pc", Size(16, 8, 256)),
        _search("darts", "nasbench201", "nasbench201", Size(16, 5, 64), {"order": "first"}),
        _search("gdas", "nasbench201", "gdas", Size(16, 5, 64)),
        _recurrent(),
        _retraining(),
        _supernet("attentive_nas", 64, 224),
        _supernet("small32", 256, 32),
    ]


def measure_step(
    items: int, step: Callable[[int], object], seconds: float, warm_up: int = WARM_UP, fewest: int = 3
) -> dict[str, Any]:
    """Median milliseconds, images or words a second, and peak memory of a step.

    Args:
        items: images or words a step.
        step: takes its number.
        seconds: how long to go on.
        warm_up: steps before those that count.
        fewest: steps that count, however long they take.
    """
    began = time.monotonic()
    torch.cuda.reset_peak_memory_stats()
    for number in range(warm_up):
        step(number)
    torch.cuda.synchronize()
    warm = time.monotonic() - began
    taken: list[float] = []
    number = warm_up
    while len(taken) < fewest or (len(taken) < MOST_STEPS and time.monotonic() - began < seconds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step(number)
        end.record()
        torch.cuda.synchronize()
        taken.append(start.elapsed_time(end))
        number += 1
    median = statistics.median(taken)
    return {
        "ms": median,
        "ms_range": [min(taken), max(taken)],
        "steps": len(taken),
        "items_a_second": 1000 * items / max(median, 1e-6),
        "peak_GB": torch.cuda.max_memory_allocated() / 1e9,
        "warm_up_s": warm,
    }


def _run(which: Timed, ways: Sequence[str], context: Context) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for number, way in enumerate(ways):
        torch.cuda.empty_cache()
        seconds = context.left() / (len(ways) - number)
        try:
            if way == "plain":
                assert which.plain is not None
                made: Job | PlainStep = which.plain(context.device, context.toy)
            else:
                in_toy = "traced" if way == "compiled" else way
                made = which.make(context.device, context.toy, in_toy if context.toy else way)
            # As the commands: cuDNN tries its kernels where shapes stay.
            static = not which.name.startswith("sandwich")
            precision = precision_on(context.device, None, which.precision)
            with training_in(precision, static):
                if context.toy:
                    found[way] = measure_step(made.items, made.step, 0, warm_up=1, fewest=1)
                else:
                    found[way] = measure_step(made.items, made.step, seconds)
            found[way]["precision"] = precision
            if isinstance(made, Job) and made.why_eager():
                found[way]["ran_eagerly"] = made.why_eager()
            del made
        except Exception as error:
            if "CUDA error" in str(error):
                raise
            found[way] = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
    if all("error" in result for result in found.values()):
        raise RuntimeError(next(iter(found.values()))["error"])
    return found


def speed_parts(seconds: float) -> list[Part]:
    """A part for each step: eager, as graphs where steps are alike, and plain."""
    steps = timed_steps()
    parts = []
    for which in steps:
        ways = ["eager"]
        if which.alike:
            ways.append("graphs")
        if which.plain is not None:
            ways.append("plain")
        parts.append(Part(f"speed {which.name}", seconds / len(steps), partial(_run, which, ways)))
    return parts


def compiled_parts(seconds: float) -> list[Part]:
    """A part for each step that can be compiled, as graphs, too; to compile may take minutes."""
    steps = [which for which in timed_steps() if which.alike]
    parts = []
    for which in steps:
        parts.append(Part(f"compiled {which.name}", seconds / len(steps), partial(_run, which, ["compiled"])))
    return parts
