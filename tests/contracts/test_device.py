"""On a GPU no step mixes devices, and the host waits for none but what `WAITS` names.

A step that waits leaves the device idle until the host has queued its next kernel. There is no GPU here: the
steps run on one that is pretended (`pretended_gpu`). Whole commands are in `test_device_commands`.
"""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from chains import small_chain
from pretended_gpu import CUDA, Gpu, pretended_gpu
from small_search import NAMES, small_method, small_search
from torch import Tensor

from engine.data.digits import Digits
from engine.data.sources import load_data
from engine.optim import SGD, RunningAverage, build_sgd, clip_gradients
from ofa.calibration import calibrate, subnet_accuracy, subnet_confusion
from ofa.space.arch import smallest
from ofa.space.space import Space
from ofa.subnet import extract
from ofa.supernet import Supernet
from oneshot.axes.progress import Progress
from oneshot.networks.dropout import Dropout
from oneshot.networks.final import FinalNetwork
from oneshot.networks.language_loss import slowness, text_loss
from oneshot.networks.recurrent import CellNetwork, draw_masks
from oneshot.searcher import Searcher
from oneshot.spaces.cells import find_space
from oneshot.spaces.read_genotype import find_genotype
from oneshot.spaces.search_space import SearchSpace

ROOT = Path(__file__).parents[2]
# Those that are tried on the whole space of DARTS too, which takes a second of CPU each and more.
WHOLE = ("random_ws", "enas", "gdas", "gaea", "gaea_pc_darts")
MORE: list[tuple[str, str, dict[str, Any]]] = [
    *(("darts", space, {"order": "second"}) for space in ("darts", "nasbench201", "recurrent")),
    *(("darts", space, {"order": "exact"}) for space in ("darts", "nasbench201", "recurrent")),
    *(("darts", space, {}) for space in ("darts_s1", "darts_s2", "darts_s3")),
    ("pr_darts", "darts_s1", {}),
    ("gaea", "darts_s3", {}),
    ("gaea", "nasbench201", {"level": "single"}),
    ("pc_darts", "nasbench201", {"penalties": [{"name": "beta_decay"}, {"name": "cost"}]}),
    ("gdas", "darts_s3", {"penalties": [{"name": "cost", "of": "params", "form": "add"}]}),
    ("pr_darts", "nasbench201", {"penalties": []}),
]
# What a step may wait for, by method: where, and how often in one step. Each has its reason.
WAITS: dict[str, dict[str, int]] = {}
# The host must know which operations to run, and the device draws them: once for the weights' step, once for
# the architecture's.
for sampling in ("gdas", "pr_darts", "reinmax", "proxyless", "proxyless_r"):
    WAITS[sampling] = {"oneshot/axes/edge_weights.py read_active: tolist": 2}
# One number, or one table, of all images together is what an evaluation is for.
WAITS["evaluation"] = {
    "engine/compute/evaluation.py accuracy: _local_scalar_dense": 1,
    "engine/compute/evaluation.py confusion: device to host": 1,
}


def space_named(name: str) -> SearchSpace:
    return small_chain() if name == "chain" else find_space(name)


def cases() -> list[Any]:
    found: list[tuple[str, str, dict[str, Any]]] = []
    one_cell = find_space("nasbench201")
    for name in NAMES:
        spaces = ["nasbench201", "recurrent", "chain"]
        if name in WHOLE or small_method(name, one_cell, {}).refuse(one_cell):
            spaces.append("darts")
        found += [(name, space, {}) for space in spaces]
    found += MORE
    return [pytest.param(*case, id="-".join((*case[:2], *map(str, case[2].values())))) for case in found]


@pytest.mark.parametrize(("name", "space_name", "settings"), cases())
def test_search_step(name: str, space_name: str, settings: dict[str, Any]) -> None:
    space = space_named(space_name)
    method = small_method(name, space, settings)
    if method.refuse(space):
        return
    with pretended_gpu(ROOT) as gpu:
        searcher, epoch = small_search(method, space, CUDA, batch=4), method.warmup_epochs
        searcher.state.progress = Progress(epoch, searcher.epochs)
        batches = searcher.state.objective.batches(epoch, 0)
        first = next(batches)
        # The first step fills caches of constants; one of first order fills the same ones in less time.
        searcher.method = method.model_copy(update={"order": "first"})
        searcher.step(0, *first)
        searcher.method = method
        resume(searcher)
        with gpu.record():
            losses = searcher.step(1, *next(batches))
        assert losses.device == CUDA
    check(gpu, name)


SAMPLING = ["gdas", "random_ws", "enas", "darts"]


@pytest.mark.parametrize("space_name", ["nasbench201", "recurrent"])
@pytest.mark.parametrize("name", SAMPLING)
def test_between_epochs(name: str, space_name: str) -> None:
    """A controller is trained, weights are judged, a cell is read off, and nothing is mixed."""
    space = space_named(space_name)
    method = small_method(name, space, {})
    with pretended_gpu(ROOT) as gpu:
        searcher = small_search(method, space, CUDA, batch=4)
        method.after_epoch(searcher.state)
        searcher.measure(limit=8)
        method.final_genotype(searcher.state)
        if name == "darts" and space_name == "recurrent":
            searcher.eigenvalue(next(searcher.state.objective.batches(0, 0))[1])
    assert not gpu.mixed


def resume(searcher: Searcher) -> None:
    """Through a checkpoint, as `--resume` does: everything comes back on the host."""
    state = on_host(searcher.state.state_dict())
    searcher.state.load_state_dict(state)


def on_host(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.detach().cpu().clone()
    if isinstance(state, dict):
        return {name: on_host(part) for name, part in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(on_host(part) for part in state)
    return state


def test_calibration_and_evaluation(tiny: Space) -> None:
    """BatchNorm's statistics of several batches, then two measurements, in which only their results wait."""
    with pretended_gpu(ROOT) as gpu:
        supernet = Supernet(tiny, 10, 1).to(CUDA, memory_format=torch.channels_last)
        data = load_data(Digits(), CUDA, 0)
        with gpu.record():
            subnet = extract(supernet, smallest(tiny))
            calibrate(subnet, data.batches("train", 64, 128))
            subnet_accuracy(subnet, data.batches("val", 64))
            subnet_confusion(subnet, data.batches("val", 64), 10)
    check(gpu, "evaluation")


@pytest.mark.parametrize("decay", [None, 0.9])
def test_average_of_weights(decay: float | None) -> None:
    with pretended_gpu(ROOT) as gpu:
        net = FinalNetwork(find_genotype("DARTS_V2"), 4, 3, 10, 1, auxiliary=False).to(CUDA)
        average = RunningAverage(net, decay)
        average.update()
        average.load_state_dict(on_host(average.state_dict()))  # as `--resume` does
        with gpu.record():
            average.update()
    check(gpu, "average")


def test_retraining_step() -> None:
    with pretended_gpu(ROOT) as gpu:
        net = FinalNetwork(find_genotype("DARTS_V2"), 4, 3, 10, 1, auxiliary=True)
        net = net.to(CUDA, memory_format=torch.channels_last)
        optimizer = build_sgd(SGD(), net)
        x, y = next(load_data(Digits(), CUDA, 0).train_batches(4, 0))
        with gpu.record():
            logits, auxiliary = net(x, 0.2, torch.Generator(device=CUDA))
            (F.cross_entropy(logits, y) + F.cross_entropy(auxiliary, y)).backward()
            clip_gradients(SGD(), net)
            optimizer.step()
    check(gpu, "retraining")


def test_language_step() -> None:
    with pretended_gpu(ROOT) as gpu:
        net = CellNetwork(50, 4, find_genotype("DARTS_V2_recurrent").cells["recurrent"]).to(CUDA)
        x = torch.zeros(5, 3, dtype=torch.long, device=CUDA)
        with gpu.record():
            masks = draw_masks(Dropout(words=0.1), net, 3, torch.Generator(device=CUDA))
            read = net(x, net.start(3), masks)
            (text_loss(read, x) + slowness(read)).backward()
    check(gpu, "language")


def check(gpu: Gpu, what: str) -> None:
    """Nothing mixed, and nothing waited for that `WAITS` does not name for `what`."""
    found = gpu.waits()
    copies = sum(gpu.copies.values())
    print(f"{what}: {sum(found.values())} waits, {copies} copies, {gpu.ops.total()} operations")
    assert gpu.ops and not gpu.mixed
    allowed = WAITS.get(what, {})
    assert {place: count for place, count in found.items() if count > allowed.get(place, 0)} == {}


@pytest.mark.parametrize(
    "place",
    [
        "engine.data.arrays.random_crop",
        "oneshot.searcher.weight_gradients",
        "oneshot.methods.method.read_active",
        "oneshot.searcher.set_learning_rate",
    ],
)
def test_a_wait_in_a_step_of_the_product_is_noticed(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The contract itself is tested: each of these functions, which a step calls, waits once more."""
    module, name = place.rsplit(".", 1)
    real = getattr(importlib.import_module(module), name)

    def waiting(*args: Any) -> Any:
        torch.ones((), device=CUDA).item()
        return real(*args)

    monkeypatch.setattr(place, waiting)
    with pytest.raises(AssertionError, match="waiting"):
        test_search_step("gaea", "nasbench201", {})
