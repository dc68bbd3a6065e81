"""Search and retraining steps can be recorded: repeated without Python, they learn what eager steps learn.

The stand-in for a graph refuses whatever waits for the device, and repeats every number that Python computed
when it recorded. So equal weights after several steps mean that a step takes nothing from the host.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from pretended_gpu import pretended_gpu
from recorded_steps import TapeRecording
from torch import Tensor

from engine.command.cli import parse
from engine.compute.distributed import ALONE
from engine.compute.graphs import WARM_UP, GraphedStep, steady
from engine.data.digits import Digits
from engine.data.sources import load_data
from engine.run import Run
from oneshot.axes.operation_costs import operation_costs
from oneshot.axes.progress import Progress
from oneshot.methods.beta_darts import BetaDarts
from oneshot.methods.darts import Darts
from oneshot.methods.darts_minus import DartsMinus
from oneshot.methods.gaea import Gaea
from oneshot.methods.method import Method
from oneshot.methods.pc_darts import PcDarts
from oneshot.methods.sampled.gdas import Gdas
from oneshot.objectives.images import ImageObjective, search_network
from oneshot.retrain import Retrain, Retraining
from oneshot.searcher import Searcher
from oneshot.spaces.cells import find_space
from oneshot.spaces.read_genotype import find_genotype
from oneshot.trained import build_network, network_model

CPU = torch.device("cpu")
STEPS = WARM_UP + 2


def as_on_cuda(optimizer: torch.optim.Optimizer | None) -> None:
    """Let an optimiser compute as it does on CUDA, with a rate that is a tensor."""
    assert optimizer is not None
    steady(optimizer, CPU)
    for group in optimizer.param_groups:
        if "fused" in group:
            group["fused"] = True


def started(method: Method, space_name: str, device: torch.device = CPU) -> Searcher:
    space = find_space(space_name)
    torch.manual_seed(0)
    network = search_network(space, method, 4, 1 if space_name == "nasbench201" else 3, 10, 1)
    data = load_data(Digits(val=0.5), device, 0)
    objective = ImageObjective(network, data, 8, method.level == "single")
    costs = operation_costs(method.penalties, space, device)
    return Searcher(method, space, objective, 0, 8, costs)


def searcher(method: Method, space_name: str) -> Searcher:
    found = started(method, space_name)
    as_on_cuda(found.state.weight_optimizer)
    as_on_cuda(found.state.architecture_optimizer)
    return found


def learned(search: Searcher, epochs: tuple[int, ...]) -> list[Tensor]:
    """Losses, alphas, weights and statistics after some steps of some epochs."""
    found = []
    for epoch in epochs:
        search.state.progress = Progress(epoch, search.epochs)
        batches = search.state.objective.batches(epoch, 0)
        found += [search.step(number, *next(batches)) for number in range(STEPS)]
    state = search.state
    return [*found, *state.alphas.all(), *state.objective.network.state_dict().values()]


def same(eager: list[Tensor], graphed: list[Tensor]) -> bool:
    """Bit for bit."""
    return all(torch.equal(ours, wanted) for ours, wanted in zip(graphed, eager, strict=True))


@pytest.mark.parametrize(
    ("method", "space"),
    [
        (Gaea(level="single"), "nasbench201"),
        pytest.param(BetaDarts(order="second", weights_first=True), "nasbench201", marks=pytest.mark.slow),
        pytest.param(PcDarts(warmup_epochs=1, partial=2), "nasbench201", marks=pytest.mark.slow),
        pytest.param(DartsMinus(), "darts", marks=pytest.mark.slow),
        pytest.param(Darts(order="exact"), "darts_s2", marks=pytest.mark.slow),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_search_step_can_be_recorded(method: Method, space: str) -> None:
    eager, graphed = searcher(method, space), searcher(method, space)
    assert graphed.varies() is None
    recording = TapeRecording()
    graphed.graph = GraphedStep(recording)
    # The second epoch has another rate and other weights of penalties; PC-DARTS's alphas begin to move.
    epochs = (0, 1) if space == "nasbench201" else (1,)
    assert same(learned(eager, epochs), learned(graphed, epochs))
    assert recording.records == len(epochs)
    assert recording.replays == len(epochs) * (STEPS - WARM_UP)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", [Gaea(level="single"), PcDarts(order="second", warmup_epochs=0, partial=2)]
)
def test_what_is_recorded_takes_nothing_from_the_host(method: Method) -> None:
    """On a pretended GPU: no wait, no copy, and the same operations in each step."""
    operations = []
    with pretended_gpu(Path(__file__).parents[2]) as gpu:
        search = started(method, "nasbench201", torch.device("cuda", 0))
        batches = search.state.objective.batches(0, 0)
        for number in range(WARM_UP):
            search.step(number, *next(batches))
        for number in range(2):
            train, valid = next(batches)
            before = gpu.ops.copy()
            with gpu.record():
                search._move(number, 0.01, train, valid)
            operations.append(gpu.ops - before)
    assert not gpu.syncs and not gpu.copies
    assert operations[0] == operations[1]


def test_methods_that_draw_say_why_they_are_not_recorded() -> None:
    assert searcher(Gdas(), "nasbench201").varies() == "method gdas draws in each step which operations run"


def test_steps_without_an_architecture_step_are_not_recorded() -> None:
    """A graph would repeat the one that it recorded: the architecture would move in all steps or in none."""
    said = searcher(Darts(architecture_every=2), "nasbench201").varies()
    assert said == "the architecture moves in one of 2 steps"


def retraining(folder: Path, *flags: str) -> Retraining:
    words = ["--out", str(folder), "--device", "cpu", "--batch-size", "16", "--epochs", "8", *flags]
    config = parse(Retrain, [*words, "--network.cells", "3", "--network.channels", "4"])
    data = load_data(config.data, CPU, 0)
    model = network_model(find_genotype("DARTS_V2"), config.network, data)
    torch.manual_seed(0)
    network = build_network(model, config.auxiliary > 0)
    run = Run.start(folder, config, resume=False, overwrite=False)
    found = Retraining(config, run, network, data, ALONE, model)
    as_on_cuda(found.optimizer)
    return found


def steps_of(training: Retraining) -> list[Tensor]:
    for epoch in (0, 3, 5):
        training.epoch = epoch
        for (x, y), _ in zip(training.batches(), range(STEPS), strict=False):
            training.update(x, y)
    return [*training.pending, *training.network.state_dict().values()]


@pytest.mark.slow
def test_a_retraining_step_can_be_recorded(tmp_path: Path) -> None:
    """One graph serves all epochs with drop-path, though rates and the probability change."""
    eager, graphed = retraining(tmp_path / "eager"), retraining(tmp_path / "graphed")
    recording = TapeRecording([graphed.draws])
    graphed.graph = GraphedStep(recording)
    wanted = steps_of(eager)
    assert same(wanted, steps_of(graphed))
    assert (recording.records, recording.replays) == (2, 3 * STEPS - 2 * WARM_UP)
    state: dict[str, Any] = graphed.state()
    other = retraining(tmp_path / "other")
    other.load(state)
    assert isinstance(other.optimizer.param_groups[0]["lr"], float), "an eager run goes on with a number"
