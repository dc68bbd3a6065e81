"""Methods that judge whole architectures by shared weights: ENAS's controller learns what is rewarded, random
search takes the best."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from oneshot.axes.edge_weights import NetworkEdgeWeights
from oneshot.bilevel import LossFn
from oneshot.methods.method import Method
from oneshot.methods.sampled.architecture import Architecture, as_genotype, sample_architecture
from oneshot.methods.sampled.controller import Controller
from oneshot.methods.sampled.enas import Enas
from oneshot.methods.sampled.random_ws import RandomWs, best_of
from oneshot.objectives.images import ImageLoss
from oneshot.searcher import Searcher
from oneshot.spaces.cells import CellSpace, find_space
from oneshot.state import SearchState

SPACE = CellSpace("nasbench201", ("cell",), 1, 2, ("none", "skip_connect", "nor_conv_3x3"), None)


class Rewarded:
    """An objective whose quality is the weight of one operation: what a good search must find. Nothing is
    trained."""

    batch_items = 10
    about = ""

    def __init__(self, operation: str, quality: str = "accuracy", space: CellSpace = SPACE):
        self.network: nn.Module = nn.Linear(1, 1)
        self.loss: LossFn = ImageLoss(self.network)
        self.quality, self.column, self.space = quality, space.operations.index(operation), space
        self.limits: list[int | None] = []

    def reward_batches(self, epoch: int) -> Iterator[Any]:
        while True:
            yield None

    def share(self, edge_weights: NetworkEdgeWeights) -> float:
        weights = torch.cat([cell_weights.weight_EO for cell_weights in edge_weights.values()])
        return float(weights[:, self.column].sum() / weights.sum())

    def reward(self, batch: Any, edge_weights: NetworkEdgeWeights) -> float:
        return self.share(edge_weights)

    def measure(self, edge_weights: NetworkEdgeWeights, limit: int | None = None) -> float:
        self.limits.append(limit)
        return self.share(edge_weights) if self.quality == "accuracy" else 100 - self.share(edge_weights)


def search(method: Method, objective: Rewarded, seed: int = 0) -> SearchState:
    return Searcher(method, objective.space, objective, seed, 2).state  # type: ignore[arg-type]


def probability(controller: Controller, operation: int) -> float:
    """Share of an operation among what 100 draws have on their edges."""
    with torch.no_grad():
        drawn = [controller(torch.Generator().manual_seed(seed))[0] for seed in range(100)]
    chosen = [o for choice in drawn for _, o in choice["cell"]]
    return chosen.count(operation) / len(chosen)


@pytest.mark.slow
@pytest.mark.parametrize("operation", ["skip_connect", "nor_conv_3x3"])
def test_the_controller_learns_what_is_rewarded(operation: str) -> None:
    method = Enas(controller_steps=40, samples_a_step=10, lr=0.02, size=16, candidates=20)
    objective = Rewarded(operation)
    ours = search(method, objective)
    controller = ours.alphas.controller
    assert isinstance(controller, Controller)
    before = probability(controller, objective.column)
    assert before == pytest.approx(1 / 3, abs=0.12)
    method.after_epoch(ours)
    assert probability(controller, objective.column) > max(0.7, before)
    assert float(controller.average) > 0.4, "the baseline follows the rewards"
    found = method.final_genotype(ours).cells["cell"]
    assert {name for node in found.nodes for name, _ in node} == {operation}


@pytest.mark.slow
def test_log_probabilities_are_those_of_the_draws() -> None:
    torch.manual_seed(0)
    controller = Controller(SPACE, 8, 1, 5.0, 2.5)
    seen: dict[Architecture | tuple[Any, ...], list[float]] = {}
    for seed in range(2000):
        choice, log_probability, entropy = controller(torch.Generator().manual_seed(seed))
        seen.setdefault(choice["cell"], []).append(log_probability.item())
        assert 0 < entropy.item() <= 3 * torch.log(torch.tensor(3.0)) + 1e-5
    assert len(seen) == 27
    assert sum(torch.tensor(values[0]).exp() for values in seen.values()) == pytest.approx(1, abs=1e-5)
    for values in seen.values():
        assert max(values) - min(values) < 1e-6
        assert len(values) / 2000 == pytest.approx(float(torch.tensor(values[0]).exp()), abs=0.02)


def test_the_baseline_starts_at_the_first_reward_and_moves_slowly() -> None:
    controller = Controller(SPACE, 4, 1, 5.0, 2.5)
    controller.follow(0.5, 0.99)
    assert float(controller.average) == 0.5
    controller.follow(1.5, 0.99)
    assert float(controller.average) == pytest.approx(0.51)


@pytest.mark.parametrize("quality", ["accuracy", "perplexity"])
def test_the_best_candidate_wins(quality: str) -> None:
    space = find_space("darts")
    objective = Rewarded("skip_connect", quality, space)
    method = RandomWs(candidates=60, finalists=5, batches=3)
    ours = search(method, objective)
    found = method.final_genotype(ours)
    assert objective.limits == [30] * 60 + [None] * 5
    skips = [
        sum(name == "skip_connect" for cell in g.cells.values() for node in cell.nodes for name, _ in node)
        for g in candidates(space)
    ]
    assert sum(
        name == "skip_connect" for cell in found.cells.values() for node in cell.nodes for name, _ in node
    ) == max(skips)
    assert best_of(ours, [sample_architecture(space, generator(0))], 1, 10) == sample_architecture(
        space, generator(0)
    ), "fewer candidates than finalists"


def generator(number: int) -> Any:
    from engine.seed import numpy_generator

    return numpy_generator(0, "candidate", number)


def candidates(space: CellSpace) -> list[Any]:
    return [as_genotype(space, sample_architecture(space, generator(number))) for number in range(60)]


@pytest.mark.slow
def test_drawn_architectures_are_uniform() -> None:
    space, seen = find_space("darts"), torch.zeros(14, 8)
    for number in range(3000):
        for edge, operation in sample_architecture(space, generator(number))["reduce"]:
            seen[edge, operation] += 1
    kept = torch.tensor(
        [2 / (into.stop - into.start) for into in space.entering for _ in range(into.start, into.stop)]
    )
    assert (seen[:, 0] == 0).all(), "none is not drawn where a cell cannot keep it"
    torch.testing.assert_close(seen[:, 1:] / 3000, (kept / 7)[:, None].expand(14, 7), atol=0.03, rtol=0)
