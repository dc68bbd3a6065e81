"""On a GPU no step mixes devices, and the host waits for none but what `WAITS` names.

A step that waits leaves the device idle until the host has queued its next kernel. There is no GPU here: the
steps run on one that is pretended (`pretended_gpu`). Whole commands are in `test_device_commands`.
"""

import importlib
import math
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from chains import small_chain
from pretended_gpu import CUDA, Gpu, pretended_gpu
from torch import Tensor

from engine.config import over_defaults, validate
from engine.data.digits import Digits
from engine.data.sources import load_data
from engine.data.text import Grammar, load_text
from engine.optim import SGD, RunningAverage, build_sgd, clip_gradients
from ofa.calibration import calibrate, subnet_accuracy, subnet_confusion
from ofa.space.arch import smallest
from ofa.space.space import Space
from ofa.subnet import extract
from ofa.supernet import Supernet
from oneshot.axes.operation_costs import operation_costs
from oneshot.axes.progress import Progress
from oneshot.chains.layers import ImageShape
from oneshot.chains.network import ChainNetwork
from oneshot.chains.space import ChainSpace
from oneshot.methods import MethodConfig
from oneshot.methods.method import Method
from oneshot.networks.dropout import Dropout
from oneshot.networks.final import FinalNetwork
from oneshot.networks.language_loss import slowness, text_loss
from oneshot.networks.recurrent import CellNetwork, draw_masks
from oneshot.objectives.images import ImageObjective, search_network
from oneshot.objectives.text import TextObjective, TextSettings
from oneshot.search import Search
from oneshot.searcher import Searcher
from oneshot.spaces.cells import find_space
from oneshot.spaces.read_genotype import find_genotype
from oneshot.spaces.search_space import SearchSpace

ROOT = Path(__file__).parents[2]
NAMES = [kind.model_fields["name"].default for kind in get_args(get_args(MethodConfig)[0])]
FEW = {"candidates": 2, "finalists": 2, "batches": 2, "controller_steps": 1, "samples_a_step": 1}
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


def method_of(name: str, space: SearchSpace, settings: dict[str, Any]) -> Method:
    """A method with what was published for the space, as the command builds it."""
    values = Search.prepare({"method": {"name": name, **settings}, "space": space.name})
    method = validate(Search, over_defaults(Search, values), "test").method
    if method.selection is not None:
        method = method.model_copy(update={"selection": method.selection.model_copy(update={"images": 8})})
    few = {field: count for field, count in FEW.items() if field in type(method).model_fields}
    return method.model_copy(update=few)


def space_named(name: str) -> SearchSpace:
    return small_chain() if name == "chain" else find_space(name)


def searcher_of(method: Method, space: SearchSpace) -> Searcher:
    """A search of the smallest network, on the device."""
    image = ImageShape(8, 1, 10)
    costs, epochs = operation_costs(method.penalties, space, CUDA, image), method.warmup_epochs + 4
    if space.name == "recurrent":
        text = TextObjective(load_text(Grammar(sentences=200)), TextSettings(hidden=4, bptt=4), 4, 0, CUDA)
        return Searcher(method, space, text, 0, epochs, costs)
    if isinstance(space, ChainSpace):
        network: torch.nn.Module = ChainNetwork(space, image)
    else:
        # The smallest that all stages of a method can cut into parts.
        channels = math.lcm(4, *method.channel_parts)
        network = search_network(space, method, channels, 1 if space.name == "nasbench201" else 3, 10, 1)
    single, released = method.level != "bilevel", method.level == "released"
    images = ImageObjective(network, load_data(Digits(val=0.5), CUDA, 0), 4, single, released)
    return Searcher(method, space, images, 0, epochs * max(1, len(getattr(method, "stages", ()))), costs)


def cases() -> list[Any]:
    found: list[tuple[str, str, dict[str, Any]]] = []
    for name in NAMES:
        spaces = ["nasbench201", "recurrent", "chain"]
        if name in WHOLE or method_of(name, find_space("nasbench201"), {}).refuse(find_space("nasbench201")):
            spaces.append("darts")
        found += [(name, space, {}) for space in spaces]
    found += MORE
    return [pytest.param(*case, id="-".join((*case[:2], *map(str, case[2].values())))) for case in found]


@pytest.mark.parametrize(("name", "space_name", "settings"), cases())
def test_search_step(name: str, space_name: str, settings: dict[str, Any]) -> None:
    space = space_named(space_name)
    method = method_of(name, space, settings)
    if method.refuse(space):
        return
    with pretended_gpu(ROOT) as gpu:
        searcher, epoch = searcher_of(method, space), method.warmup_epochs
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
    method = method_of(name, space, {})
    with pretended_gpu(ROOT) as gpu:
        searcher = searcher_of(method, space)
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
