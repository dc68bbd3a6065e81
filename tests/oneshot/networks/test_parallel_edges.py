"""Edges computed together are the edges computed one by one, in torch's own words: values and gradients, in
float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from oneshot.axes.edge_weights import ActiveOperations, EdgeWeights
from oneshot.networks.edge_operations import Convolution, FactorizedSkip, Separable
from oneshot.networks.parallel_edges import EdgeSettings, ParallelEdges, sum_terms
from oneshot.networks.search_cells import MixedNodes
from oneshot.spaces.cells import CellSpace, find_space

DARTS, NB201 = find_space("darts"), find_space("nasbench201")


def norm(x: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, training=True, eps=1e-5)


def separable(own: Separable, x: Tensor, block: int) -> Tensor:
    stride, dilation = own.stride, 2 if own.dilated else 1
    for depth, point in zip(own.depth, own.point, strict=True):
        depth, point = depth.chunk(own.edges)[block], point.chunk(own.edges)[block]
        x = F.conv2d(F.relu(x), depth, None, stride, dilation * (depth.shape[-1] // 2), dilation, len(depth))
        x, stride = norm(F.conv2d(x, point)), 1
    return x


def reduced(own: FactorizedSkip, x: Tensor, block: int) -> Tensor:
    x, even, odd = F.relu(x), own.even.chunk(own.edges)[block], own.odd.chunk(own.edges)[block]
    # The odd pixels of an odd side are one fewer; beyond the map there are zeros.
    shifted = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))[:, :, 1:, 1:]
    return norm(torch.cat([F.conv2d(x, even, stride=2), F.conv2d(shifted, odd, stride=2)], 1))


def one(parallel_edges: ParallelEdges, name: str, x: Tensor, position: int) -> Tensor:
    """An operation of one edge."""
    if "pool" in name:
        average = F.avg_pool2d(x, 3, parallel_edges.stride, 1, count_include_pad=False)
        x = F.max_pool2d(x, 3, parallel_edges.stride, 1) if name.startswith("max") else average
        return norm(x) if parallel_edges.pool_norm else x
    if name not in parallel_edges.own:
        return x
    own, block = parallel_edges.own[name], parallel_edges.allowed[name].index(position)
    if isinstance(own, Separable):
        return separable(own, x, block)
    if isinstance(own, FactorizedSkip):
        return reduced(own, x, block)
    assert isinstance(own, Convolution)
    weight = own.weight.chunk(own.edges)[block]
    return norm(F.conv2d(F.relu(x), weight, padding=weight.shape[-1] // 2))


def edge_by_edge(
    parallel_edges: ParallelEdges,
    x: Tensor,
    weight_nO: Tensor,
    active: ActiveOperations | None,
    skip: Tensor | None,
) -> list[Tensor]:
    results = []
    for position in range(parallel_edges.edges):
        terms = [torch.zeros_like(x[:, :, :: parallel_edges.stride, :: parallel_edges.stride])]
        for name, allowed in parallel_edges.allowed.items():
            column = parallel_edges.operations.index(name)
            if position in allowed and (active is None or column in active[position]):
                terms.append(weight_nO[position, column] * one(parallel_edges, name, x, position))
        if skip is not None:
            terms.append(
                skip
                * (x if parallel_edges.auxiliary is None else reduced(parallel_edges.auxiliary, x, position))
            )
        results.append(sum_terms(terms))
    return results


def random_input(*shape: int) -> Tensor:
    return (
        torch.randn(*shape, dtype=torch.double).contiguous(memory_format=torch.channels_last).requires_grad_()
    )


def assert_same(ours: list[Tensor], plain: list[Tensor], inputs: list[Tensor]) -> None:
    grads = [torch.randn_like(y) for y in plain]
    torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-11)
    found, wanted = (
        torch.autograd.grad(  # an edge on which nothing runs has no gradient
            [y + 0 * inputs[0].sum() for y in ys], inputs, grads, allow_unused=True, materialize_grads=True
        )
        for ys in (ours, plain)
    )
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("case", ["all", "sampled", "reduced", "sampled and reduced"])
@pytest.mark.parametrize(
    ("space", "stride", "size"),
    [(DARTS, 1, (8, 6)), (DARTS, 1, (7, 5)), (DARTS, 2, (8, 8)), (DARTS, 2, (7, 5)), (NB201, 1, (4, 5))],
)
def test_parallel_edges_are_edges(
    space: CellSpace, stride: int, size: tuple[int, int], case: str, create_graph: bool
) -> None:
    torch.manual_seed(len(case) + sum(size))
    operations = space.operations
    allowed_nO = torch.rand(3, len(operations)) < (0.6 if "reduced" in case else 2)
    settings = EdgeSettings(track=False, pool_norm=space is DARTS, auxiliary=True)
    parallel_edges = ParallelEdges(operations, allowed_nO, 4, stride, settings).double()
    active = (
        tuple(tuple(torch.randperm(len(operations))[: 1 + p].tolist()) for p in range(3))
        if "sampled" in case
        else None
    )
    x, weight = (
        random_input(2, 4, *size),
        torch.rand(3, len(operations), dtype=torch.double, requires_grad=True),
    )
    skip = torch.tensor(0.7, dtype=torch.double, requires_grad=True)
    inputs = [x, weight, skip, *parallel_edges.parameters()]
    assert_same(
        parallel_edges(x, weight, active, skip, create_graph),
        edge_by_edge(parallel_edges, x, weight, active, skip),
        inputs,
    )


@pytest.mark.parametrize(("kind", "side"), [("normal", 8), ("reduce", 8), ("reduce", 7)])
def test_partial_channels_and_edge_weights(kind: str, side: int) -> None:
    torch.manual_seed(0)
    mixed = MixedNodes(DARTS, kind, 8, EdgeSettings(partial=4, track=False)).double()
    states = [random_input(2, 8, side, side) for _ in range(2)]
    weight, edge = (torch.rand(*shape, dtype=torch.double, requires_grad=True) for shape in ((14, 8), (14,)))
    plain = list(states)
    for into in DARTS.entering:
        arriving = []
        for e in range(into.start, into.stop):
            source = DARTS.edges[e][0]
            parallel_edges, x = mixed.parallel_edges[source], plain[source]
            assert isinstance(parallel_edges, ParallelEdges)
            rest = x[:, 2:]
            if parallel_edges.stride == 2:
                rest = F.max_pool2d(rest, 2, 2, ceil_mode=True)
            own = edge_by_edge(parallel_edges, x[:, :2], weight[mixed.leaving[source]], None, None)[
                mixed.leaving[source].index(e)
            ]
            arriving.append(edge[e] * F.channel_shuffle(torch.cat([own, rest], 1), 4))
        plain.append(sum_terms(arriving))
    ours = mixed(states, EdgeWeights(weight, edge_E=edge), False)
    assert_same(ours[2:], plain[2:], [*states, weight, edge, *mixed.parameters()])


@pytest.mark.parametrize("stride", [1, 2])
def test_twice_differentiable_when_asked_for(stride: int) -> None:
    torch.manual_seed(0)
    operations = (
        "max_pool_3x3",
        "avg_pool_3x3",
        "skip_connect",
        "sep_conv_3x3",
        "dil_conv_3x3",
        "nor_conv_3x3",
    )[: 6 if stride == 1 else 5]
    allowed_nO = torch.ones(2, len(operations), dtype=torch.bool)
    parallel_edges = ParallelEdges(operations, allowed_nO, 2, stride, EdgeSettings(track=False)).double()
    x, weight = (
        random_input(2, 2, 4, 4),
        torch.rand(2, len(operations), dtype=torch.double, requires_grad=True),
    )
    assert torch.autograd.gradgradcheck(
        lambda x, weight: tuple(parallel_edges(x, weight, None, None, True)), (x, weight), fast_mode=True
    )


def test_fast_gradients_refuse_a_second_derivative() -> None:
    torch.manual_seed(0)
    parallel_edges = ParallelEdges(("sep_conv_3x3",), torch.ones(1, 1, dtype=torch.bool), 2, 1)
    x, weight = torch.randn(2, 2, 4, 4, requires_grad=True), torch.ones(1, 1, requires_grad=True)
    (y,) = parallel_edges(x.contiguous(memory_format=torch.channels_last), weight, None, None, False)
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_frozen_weights_keep_no_input_for_their_gradient() -> None:
    parallel_edges = ParallelEdges(
        ("sep_conv_5x5",), torch.ones(2, 1, dtype=torch.bool), 2, 1
    ).requires_grad_(False)
    x = torch.randn(2, 2, 4, 4).contiguous(memory_format=torch.channels_last)
    assert not any(y.requires_grad for y in parallel_edges(x, torch.ones(2, 1), None, None, False)), (
        "nothing before the first edge weights needs a graph"
    )
    assert all(
        y.requires_grad for y in parallel_edges(x, torch.ones(2, 1, requires_grad=True), None, None, False)
    )
