"""The recurrent search cell of DARTS (2019, arXiv:1806.09055) over a whole sequence, as it is defined.

`oneshot.networks.fused_recurrence` computes the same faster. An edge's sum over operations o of
w_o (s + c (o(g) - s)) is W s (1 - c) + c sum_o w_o o(g), with W the sum of the w_o.

Shapes: T steps, B sequences, H hidden units, D = 2H: gates, then values; E edges.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def _identity(g: Tensor) -> Tensor:
    return g


OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "identity": _identity,
}
EPSILON, MOMENTUM = 1e-5, 0.1  # of BatchNorm


class NodePlan(NamedTuple):
    """What a node computes.

    Args:
        sources: the states that it reads.
        operations: (column of share_E5, name) of those that it computes.
    """

    sources: list[int]
    operations: list[tuple[int, str]]


class CellMatrices(NamedTuple):
    """The matrices of a cell.

    Args:
        first_HD: of the hidden state, into s_0.
        nodes: (H, D) of each node.
    """

    first_HD: Tensor
    nodes: Sequence[Tensor]


class EdgeTerms(NamedTuple):
    """What the edges pass on.

    Args:
        share_E5: for each edge W, and the weights of tanh, relu, sigmoid and identity.
        plan: what each node computes.
        offset_E: added to each number of an edge's output.
        skip: weight of a skip connection beside the operations.
    """

    share_E5: Tensor
    plan: list[NodePlan]
    offset_E: Tensor | None = None
    skip: Tensor | None = None


def full_plan(nodes: int) -> list[NodePlan]:
    """Every node reads every state before it through every operation."""
    operations = list(enumerate(OPERATIONS, start=1))
    return [NodePlan(list(range(node + 1)), operations) for node in range(nodes)]


def first_edges(nodes: int) -> list[int]:
    """The first edge of each node, and the number of edges."""
    return [node * (node + 1) // 2 for node in range(nodes + 1)]


def first_state(product_BD: Tensor, hidden_BH: Tensor) -> Tensor:
    """s_0 = h + sigmoid(c)(tanh(g) - h)."""
    gate, value = product_BD.chunk(2, -1)
    return torch.lerp(hidden_BH, value.tanh(), gate.sigmoid())


def recurrence_by_definition(
    product_TBD: Tensor,
    hidden_BH: Tensor,
    matrices: CellMatrices,
    mask_BH: Tensor,
    edges: EdgeTerms,
    normalise: Callable[[Tensor], Tensor],
) -> Tensor:
    """(T, B, H): the outputs of all steps.

    Args:
        product_TBD: the embedded words times their half of the first matrix.
        hidden_BH: the state before the first step.
        mask_BH: dropout of every state before a product.
        normalise: the BatchNorm of s_0 and of every node.
    """
    outputs, shares = [], _node_shares(edges)
    for product_BD in product_TBD.unbind():
        product_BD = torch.addmm(product_BD, hidden_BH * mask_BH, matrices.first_HD)
        # Every step begins with s_0; node j then reads s_0 to s_j-1.
        states = [normalise(first_state(product_BD, hidden_BH))]
        for node, matrix_HD in enumerate(matrices.nodes):
            states.append(normalise(_node(node, states, matrix_HD, mask_BH, edges, shares[node])))
        hidden_BH = torch.stack(states[1:]).mean(0)
        outputs.append(hidden_BH)
    return torch.stack(outputs)


def _node_shares(edges: EdgeTerms) -> list[Tensor | None]:
    """The shares of the edges that each node reads, (edges, 5, 1, 1); None: it reads none.

    Taken once for all steps, and row by row: a list of numbers as an index would be copied to the device.
    """
    firsts = first_edges(len(edges.plan))
    rows = edges.share_E5.unbind()
    shares: list[Tensor | None] = []
    for plan, first in zip(edges.plan, firsts[:-1], strict=True):
        read = [rows[first + source] for source in plan.sources]
        shares.append(torch.stack(read)[:, :, None, None] if read else None)
    return shares


def _node(
    node: int,
    states: list[Tensor],
    matrix_HD: Tensor,
    mask_BH: Tensor,
    edges: EdgeTerms,
    share_n511: Tensor | None,
) -> Tensor:
    """(B, H): a node before its BatchNorm.

    Args:
        share_n511: the rows of `edges.share_E5` that this node reads; None: it reads no state.
    """
    into = slice(*first_edges(node + 1)[node : node + 2])
    plan = edges.plan[node]
    total = torch.zeros_like(states[0])
    if share_n511 is not None:
        state = torch.stack([states[source] for source in plan.sources])
        gate, g = (state * mask_BH @ matrix_HD).chunk(2, -1)
        blend = torch.zeros_like(g)
        for column, name in plan.operations:
            blend = blend + share_n511[:, column] * OPERATIONS[name](g)
        # lerp(a, b, c) = a + c (b - a): W s (1 - c) + c blend.
        total = torch.lerp(share_n511[:, 0] * state, blend, gate.sigmoid()).sum(0)
    # GDAS's offsets and the skip connection of DARTS- are added to every node.
    if edges.offset_E is not None:
        total = total + edges.offset_E[into].sum()
    if edges.skip is not None:
        total = total + edges.skip * torch.stack(states).sum(0)
    return total


def normalise_by_batch(x_BH: Tensor) -> Tensor:
    """BatchNorm without parameters or memory."""
    return F.batch_norm(x_BH, None, None, training=True, eps=EPSILON)
