"""Searches in stages: what is kept, what grows, and that they resume bit for bit."""

import io
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine.config import over_defaults, validate
from engine.data.digits import Digits
from engine.data.sources import load_data
from oneshot.axes.edge_weights import EdgeWeights
from oneshot.axes.progress import Progress
from oneshot.methods.staged.drnas import DrNas
from oneshot.methods.staged.growth import Growth
from oneshot.methods.staged.p_darts import PDarts
from oneshot.methods.staged.stage import Stage
from oneshot.networks.edge_operations import Separable
from oneshot.networks.parallel_edges import EdgeSettings, ParallelEdges
from oneshot.networks.search import DartsNetwork, NasBench201Network
from oneshot.objectives.images import ImageObjective, search_network
from oneshot.search import Search
from oneshot.searcher import Searcher
from oneshot.spaces.cells import find_space
from oneshot.spaces.genotype import Genotype

CPU = torch.device("cpu")
IMAGES = load_data(Digits(val=0.5), CPU, 0)
SMALL = DrNas(
    warmup_epochs=0,
    partial=4,
    stages=(Stage(epochs=1), Stage(epochs=1, keep=2, partial=2)),
    exclude_none=False,
)


def started(method: DrNas = SMALL, seed: int = 0, epochs: int = 4) -> Searcher:
    space = find_space("nasbench201")
    torch.manual_seed(seed)
    network = search_network(space, method, 8, 1, 10, 1)
    return Searcher(method, space, ImageObjective(network, IMAGES, 16, False), seed, epochs)


def take(search: Searcher, epoch: int, first: int, steps: int) -> list[Tensor]:
    search.begin_epoch(epoch)
    batches = search.state.objective.batches(epoch, first)
    return [search.step(number, *next(batches)) for number in range(first, first + steps)]


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def shape(search: Searcher) -> tuple[int, int]:
    network = search.state.objective.network
    assert isinstance(network, DartsNetwork | NasBench201Network)
    return network.settings.partial, network.size.cells


def test_published_stages() -> None:
    for space, starts, kept, partial in (
        ("darts", [0, 25], 4, (6, 6, 4)),
        ("nasbench201", [0, 50], 3, (4, 4, 2)),
    ):
        given = {"method": {"name": "drnas"}, "space": space}
        method = validate(Search, over_defaults(Search, Search.prepare(given)), "test").method
        assert isinstance(method, DrNas)
        assert method.stage_starts(method.epochs) == starts
        assert method.stages[1].keep == kept
        later = [stage.partial or method.partial for stage in method.stages]
        assert (method.partial, *later) == partial


def test_a_stage_keeps_the_strongest_and_grows() -> None:
    search = started()
    take(search, 0, 0, 2)
    alphas = search.state.alphas.operations["cell"].detach().clone()
    take(search, 2, 0, 1)  # the second half of four epochs
    assert search.state.stage == 1 and shape(search) == (2, 1)
    mask = search.state.space.allowed_mask("cell")
    best = alphas.topk(2, -1).indices
    assert torch.equal(mask, torch.zeros(6, 5, dtype=torch.bool).scatter(1, best, True))
    probabilities = search.method.probabilities(search.state.space, search.state.alphas)["cell"]
    assert torch.equal(probabilities > 0, mask)
    # What was dropped is not built either.
    for module in search.state.objective.network.modules():
        if isinstance(module, ParallelEdges):
            assert set(module.own) <= {"nor_conv_1x1", "nor_conv_3x3"} and module.channels >= 4
    # The fused SGD of CUDA takes no momentum that is laid out in another way than its weight.
    for weight, values in search.state.weight_optimizer.state.items():
        assert values["momentum_buffer"].stride() == weight.stride()


def test_a_stage_begins_once_and_resumes_bit_for_bit() -> None:
    whole = started()
    take(whole, 0, 0, 2)
    # Interrupted at the end of the first stage, and in the middle of the second.
    for point in ((2, 0), (2, 1)):
        if point[1]:
            take(whole, 2, 0, 1)
        resumed = started(seed=0)
        resumed.state.load_state_dict(through_a_file(whole.state.state_dict()))
        assert shape(resumed) == shape(whole)
        kept = through_a_file(whole.state.state_dict())
        ours, theirs = take(resumed, *point, 2), take(whole, *point, 2)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        weights = resumed.state.objective.network.parameters()
        for a, b in zip(weights, whole.state.objective.network.parameters(), strict=True):
            assert torch.equal(a, b)
        whole = started(seed=0)
        whole.state.load_state_dict(kept)


def edges(channels: int, allowed: list[list[bool]]) -> ParallelEdges:
    operations = ("skip_connect", "sep_conv_3x3")
    return ParallelEdges(operations, torch.tensor(allowed), channels, 2, EdgeSettings())


def test_growth_copies_rows_of_the_same_edge() -> None:
    torch.manual_seed(0)
    old = edges(4, [[True, True], [True, True], [True, True]])
    new = edges(6, [[True, True], [True, False], [False, True]])
    carried = Growth(0).fill(nn.Sequential(old), nn.Sequential(new))
    before, after = old.own["sep_conv_3x3"], new.own["sep_conv_3x3"]
    assert isinstance(before, Separable) and isinstance(after, Separable)
    for number in range(2):
        depth_old = before.depth[number].unflatten(0, (3, 4))
        depth_new = after.depth[number].unflatten(0, (2, 6))
        point_old = before.point[number].unflatten(0, (3, 4))
        point_new = after.point[number].unflatten(0, (2, 6))
        # Edges 0 and 2 are left. The first four channels are the old ones.
        for position, edge in enumerate((0, 2)):
            assert torch.equal(depth_new[position, :4], depth_old[edge])
            assert torch.equal(point_new[position, :4, :4], point_old[edge])
            for channel in (4, 5):
                copies = [
                    c for c in range(4) if torch.equal(depth_new[position, channel], depth_old[edge, c])
                ]
                (copy,) = copies
                # The pointwise convolution reads the copied channel as it read the original.
                assert torch.equal(point_new[position, :4, channel], point_old[edge, :, copy])
    # The momentum goes where the weights went.
    for parameter in carried:
        assert torch.equal(parameter.of(parameter.old), parameter.new)
    assert len(carried) == len(list(new.parameters()))


def test_growth_to_the_same_shape_changes_nothing() -> None:
    space = find_space("darts")
    torch.manual_seed(0)
    old = DartsNetwork(space, 4, 3, settings=EdgeSettings(partial=2))
    new = old.like(space, 2, 3)
    Growth(0).fill(old, new)
    weights = {kind: EdgeWeights(torch.rand(len(space.edges), len(space.operations))) for kind in space.cells}
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(old.eval()(x, weights), new.eval()(x, weights))


@pytest.mark.slow
def test_pruned_operations_get_no_gradient_but_others_go_on() -> None:
    search = started()
    take(search, 0, 0, 2)
    take(search, 2, 0, 1)
    mask = search.state.space.allowed_mask("cell")
    before = search.state.alphas.operations["cell"].detach().clone()
    take(search, 2, 1, 3)
    after = search.state.alphas.operations["cell"].detach()
    assert (after[mask] != before[mask]).all()
    probabilities = search.method.probabilities(search.state.space, search.state.alphas)["cell"]
    assert (probabilities[~mask] == 0).all()


# --- P-DARTS ---


def p_darts(space_name: str = "nasbench201", epochs: int = 6) -> Searcher:
    space = find_space(space_name)
    method = PDarts(
        warmup_epochs=0,
        stages=(
            Stage(epochs=1),
            Stage(epochs=1, keep=3, extra_cells=1),
            Stage(epochs=1, keep=2, extra_cells=2),
        ),
    )
    torch.manual_seed(0)
    network = search_network(space, method, 4, 3 if space_name == "darts" else 1, 10, 1)
    return Searcher(method, space, ImageObjective(network, IMAGES, 16, False), 0, epochs)


def test_schedules_of_p_darts_are_the_released_ones() -> None:
    method = PDarts()
    assert method.stage_starts(75) == [0, 25, 50] and method.cells == 5
    for stage, rate in enumerate((0.1, 0.4, 0.7)):
        for epoch in range(25):
            progress = Progress(25 * stage + epoch, 75)
            wanted = rate * (25 - epoch - 1) / 25 if epoch < 10 else rate * math.exp(-(epoch - 10) * 0.2)
            assert method.dropout(progress) == pytest.approx(wanted)
            assert method.waits(progress) == (epoch < 10)
            cosine = 0.025 * (1 + math.cos(math.pi * epoch / 25)) / 2
            assert method.learning_rate(progress) == pytest.approx(cosine)


def test_p_darts_starts_anew_deeper_and_resumes() -> None:
    whole = p_darts()
    take(whole, 0, 0, 2)
    take(whole, 2, 0, 1)
    assert shape(whole) == (1, 2) and whole.state.space.allowed_mask("cell").sum(-1).tolist() == [3] * 6
    # New weights: the momentum is that of one step.
    kept = through_a_file(whole.state.state_dict())
    resumed = p_darts()
    resumed.state.load_state_dict(kept)
    # Into the last stage, from the second one's alphas.
    ours, theirs = take(resumed, 4, 0, 2), take(whole, 4, 0, 2)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert shape(whole) == (1, 3) and whole.state.space.allowed_mask("cell").sum(-1).tolist() == [2] * 6


def test_dropout_after_skips_is_drawn_by_edge_and_keeps_the_mean() -> None:
    old = ParallelEdges(("skip_connect",), torch.ones(3, 1, dtype=torch.bool), 4, 1, EdgeSettings())
    x, weight = torch.ones(2, 4, 50, 50), torch.tensor([[1.0], [2.0], [0.5]])
    draws = torch.Generator().manual_seed(0)
    outputs = old(x, weight, None, None, False, draws, 0.4)
    for output, factor in zip(outputs, (1.0, 2.0, 0.5), strict=True):
        values = output.unique()
        torch.testing.assert_close(values, torch.tensor([0.0, factor / 0.6]))
        torch.testing.assert_close(output.mean(), torch.tensor(factor), rtol=0.05, atol=0)
    assert not torch.equal(outputs[0] > 0, outputs[1] > 0)
    assert torch.equal(old.eval()(x, weight, None, None, False, draws, 0.4)[0], x)


def test_the_weakest_skips_give_way() -> None:
    search = p_darts("darts")
    skip, sep = (search.state.space.operations.index(name) for name in ("skip_connect", "sep_conv_3x3"))
    with torch.no_grad():
        alpha = search.state.alphas.operations["normal"].zero_()
        # Skips lead on four edges; on edge 0 by least, with a convolution next.
        for edge, value in ((0, 2.0), (1, 3.0), (2, 4.0), (5, 5.0)):
            alpha[edge, skip] = value
        alpha[0, sep] = 1.5
    found = search.method.genotype(search.state)
    assert isinstance(found, Genotype)
    names = [name for node in found.cells["normal"].nodes for name, _ in node]
    assert names.count("skip_connect") == 2
    assert found.cells["normal"].nodes[0][1][0] != "skip_connect", "3.0 is weaker than 4.0 and 5.0"
    assert ("sep_conv_3x3", 0) in found.cells["normal"].nodes[0]
