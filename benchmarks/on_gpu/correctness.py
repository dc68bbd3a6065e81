"""Part (a): what must hold on a real GPU, and could only be pretended without one.

Mixtures of devices raise by themselves there. Waits are what `torch.cuda.set_sync_debug_mode` reports.
Parity compares one step on the device with the same step on the CPU, by the change of what is learned.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from benchmarks.on_gpu.jobs import (
    NO_DROPOUT,
    Job,
    Size,
    method_of,
    retrained,
    searched_images,
    searched_text,
    supernet,
)
from benchmarks.on_gpu.parts import Context
from engine.compute.precision import training_in
from ofa.training.sandwich import Sandwich
from oneshot.methods import MethodConfig
from oneshot.objectives.text import TextSettings
from oneshot.spaces.cells import find_space

MOST_WAITS = 2  # of the host in a step: each is for what the host must know
# The change of all learned tensors together may differ by so much of its length. In float64 losses are still
# float32, which alone makes some 1e-7; in float32 the CPU itself is up to 1e-5 from its float64.
TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3}
SPACES = ("darts", "nasbench201", "recurrent")
MORE: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("darts", "darts", {"order": "second"}),
    ("darts", "nasbench201", {"order": "second"}),
    ("darts", "recurrent", {"order": "second"}),
    ("darts", "nasbench201", {"order": "exact"}),
    ("gaea", "nasbench201", {"level": "single"}),
)
REHEARSED = ("sandwich", "darts nasbench201", "gdas recurrent")  # one of each kind
Build = Callable[[torch.device, torch.dtype], Job]


class Case(NamedTuple):
    """A step by its name. Build makes it without what differs between devices by design, such as dropout."""

    name: str
    build: Build
    dtypes: tuple[torch.dtype, ...] = tuple(TOLERANCES)


def _search_case(name: str, space_name: str, settings: dict[str, Any]) -> Case | None:
    space = find_space(space_name)
    method = method_of(name, space, settings)
    if method.refuse(space):
        return None

    def build(device: torch.device, dtype: torch.dtype) -> Job:
        if space_name == "recurrent":
            text = TextSettings(hidden=8, bptt=4, dropout=NO_DROPOUT)
            return searched_text(method, device, dtype, text, 4, 20)
        cells = 1 if space_name == "nasbench201" else 3
        # One channel and 8 pixels, as the digits have that some methods evaluate.
        return searched_images(method, space, Size(4, cells, 8, 8, 1), device, dtype)

    title = " ".join([name, space_name, *map(str, settings.values())])
    # What they draw says 0 or 1 of each operation in float32, whatever the network computes in.
    return Case(title, build, (torch.float32,)) if name in ("random_ws", "enas") else Case(title, build)


def all_cases() -> list[Case]:
    """The steps of all methods on all kinds of spaces, of a supernet and of a retraining."""

    def sandwich(device: torch.device, dtype: torch.dtype) -> Job:
        return supernet("digits", 8, 8, device, dtype, Sandwich(dropout=0, drop_connect=0))

    def retraining(device: torch.device, dtype: torch.dtype) -> Job:
        return retrained(4, 3, 4, 32, device, dtype, drop_path=0)

    names = [kind.model_fields["name"].default for kind in get_args(get_args(MethodConfig)[0])]
    asked: list[tuple[str, str, dict[str, Any]]] = [(n, space, {}) for n in names for space in SPACES]
    cases = [Case("sandwich", sandwich), Case("retraining", retraining)]
    for search in (*asked, *MORE):
        case = _search_case(*search)
        if case is not None:
            cases.append(case)
    return cases


def _each(context: Context, check: Callable[[Case], dict[str, Any]]) -> dict[str, Any]:
    """What `check` finds of each case, until the time is over; an error is a finding, too."""
    found: dict[str, Any] = {}
    for case in all_cases():
        if context.toy and case.name not in REHEARSED:
            continue
        if not context.left():
            found[case.name] = {"skipped": "no time was left"}
            continue
        try:
            found[case.name] = check(case)
        except Exception as error:
            if "CUDA error" in str(error):
                raise
            found[case.name] = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
    return found


def contract(context: Context) -> dict[str, Any]:
    """Every step runs on the device, and the host waits for it at most twice."""

    def check(case: Case) -> dict[str, Any]:
        job = case.build(context.device, torch.float32)
        job.step(0)  # fills caches of constants
        with context.waits() as places:
            losses = job.step(1)
        assert losses.device.type == context.device.type, f"losses on {losses.device}"
        count = sum(places.values())
        return {"waits": count, "places": places, "ok": count <= MOST_WAITS}

    return _judged(_each(context, check))


def parity(context: Context) -> dict[str, Any]:
    """One step on the device changes what is learned as one step on the CPU does."""

    def check(case: Case) -> dict[str, Any]:
        found: dict[str, Any] = {"ok": True}
        for dtype in case.dtypes:
            changes = [_change(case.build(device, dtype)) for device in (torch.device("cpu"), context.device)]
            host, device = changes
            difference = float((device - host).norm() / host.norm())
            found[str(dtype).removeprefix("torch.")] = difference
            # Not `>`: a NaN is no agreement.
            found["ok"] &= bool(difference <= TOLERANCES[dtype])
        return found

    # In both dtypes as exported: TF32 would hide what is wrong.
    with training_in("float32"):
        return _judged(_each(context, check))


def _change(job: Job) -> Tensor:
    """What one step adds to all that is learned, on the CPU."""
    before = [tensor.detach().cpu().clone() for tensor in job.learned()]
    job.step(0)
    changes = []
    for tensor, start in zip(job.learned(), before, strict=True):
        changes.append((tensor.detach().cpu() - start).double().flatten())
    return torch.cat(changes)


def bits(context: Context) -> dict[str, Any]:
    """Two runs of a few steps end alike, bit for bit, and so does one that was saved and resumed."""

    def check(case: Case) -> dict[str, Any]:
        once, again = (_after(case, context.device, resume=False) for _ in range(2))
        resumed = _after(case, context.device, resume=True)
        found = {"two_runs": _equal(once, again), "resumed": _equal(once, resumed)}
        return found | {"ok": all(found.values())}

    return _judged(_each(context, check))


def _after(case: Case, device: torch.device, resume: bool) -> list[Tensor]:
    """What is learned after three steps."""
    job = case.build(device, torch.float32)
    for number in range(2):  # the second one meets momentum
        job.step(number)
    if resume:
        state = _on_host(job.state_dict())
        job = case.build(device, torch.float32)
        # The batches of the steps that are over; what they change is replaced.
        for number in range(2):
            job.step(number)
        job.load_state_dict(state)
    job.step(2)
    return [tensor.detach().cpu() for tensor in job.learned()]


def _on_host(state: Any) -> Any:
    """A state as a checkpoint gives it back."""
    if isinstance(state, Tensor):
        return state.detach().cpu().clone()
    if isinstance(state, dict):
        return {name: _on_host(part) for name, part in state.items()}
    if isinstance(state, list):
        return [_on_host(part) for part in state]
    return state


def _equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def _judged(found: dict[str, Any]) -> dict[str, Any]:
    """The findings, with the names of those that are not right, or were not reached, first."""
    right, wrong, skipped = 0, [], []
    for name, finding in found.items():
        if "skipped" in finding:
            skipped.append(name)
        elif finding.get("ok"):
            right += 1
        else:
            wrong.append(name)
    return {"right": right, "wrong": wrong, "skipped": skipped, "cases": found}
