"""The recurrent search cell of DARTS (2019, arXiv:1806.09055) over a whole sequence: as it is defined, and as
one fast operation.

Both are the same mathematics. An edge's sum over operations o of w_o (s + c (o(g) - s)) is W s (1 - c) + c
sum_o w_o o(g), with W the sum of the w_o. In the fast operation what does not depend on a later gradient is
computed backward for all edges of a step at once; then each node costs one product; and each matrix gets its
gradient in one product at the end, not in one a step.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "identity": lambda g: g,
}
EPSILON, MOMENTUM = 1e-5, 0.1  # of BatchNorm


class Needed(NamedTuple):
    """What a node computes: the states that it reads, and operations by their column of share_E5 and name."""

    sources: list[int]
    operations: list[tuple[int, str]]


def everything(nodes: int) -> list[Needed]:
    """Every node reads every state before it through every operation."""
    return [Needed(list(range(node + 1)), list(enumerate(OPERATIONS, start=1))) for node in range(nodes)]


def starts(nodes: int) -> list[int]:
    """The first edge of each node, and the number of edges."""
    return [node * (node + 1) // 2 for node in range(nodes + 1)]


def first_state(product_BD: Tensor, hidden_BH: Tensor) -> Tensor:
    """s_0 = h + sigmoid(c)(tanh(g) - h)."""
    gate, value = product_BD.chunk(2, -1)
    return torch.lerp(hidden_BH, value.tanh(), gate.sigmoid())


def defined(
    product_TBD: Tensor,
    hidden_BH: Tensor,
    first_HD: Tensor,
    mask_BH: Tensor,
    share_E5: Tensor,
    matrices: Sequence[Tensor],
    plan: list[Needed],
    normalise: Callable[[Tensor], Tensor],
    offset_E: Tensor | None = None,
    skip: Tensor | None = None,
) -> Tensor:
    """(T, B, H): what `Recurrence` returns, for sampled edges, offsets and skips too."""
    outputs = []
    for product_BD in product_TBD.unbind():
        states = [normalise(first_state(torch.addmm(product_BD, hidden_BH * mask_BH, first_HD), hidden_BH))]
        for matrix, needed, (a, b) in zip(matrices, plan, pairwise(starts(len(plan))), strict=True):
            total = torch.zeros_like(hidden_BH)
            if needed.sources:
                state, share = (
                    torch.stack([states[i] for i in needed.sources]),
                    share_E5[a:b][needed.sources, :, None, None],
                )
                gate, g = (state * mask_BH @ matrix).chunk(2, -1)
                blend = sum(
                    (share[:, column] * OPERATIONS[name](g) for column, name in needed.operations),
                    torch.zeros_like(g),
                )
                total = torch.lerp(share[:, 0] * state, blend, gate.sigmoid()).sum(0)
            if offset_E is not None:
                total = total + offset_E[a:b].sum()
            if skip is not None:
                total = total + skip * torch.stack(states).sum(0)
            states.append(normalise(total))
        hidden_BH = torch.stack(states[1:]).mean(0)
        outputs.append(hidden_BH)
    return torch.stack(outputs)


def by_batch(x_BH: Tensor) -> Tensor:
    """BatchNorm without parameters or memory."""
    return F.batch_norm(x_BH, None, None, training=True, eps=EPSILON)


def mixed(g: Tensor, tanh: Tensor, relu: Tensor, sigmoid: Tensor, share_E511: Tensor) -> Tensor:
    """Sum of the operations at `g`, (..., E, B, H), by their shares; three of them are known already."""
    _, w_tanh, w_relu, w_sigmoid, w_identity = share_E511.unbind(1)
    return (w_identity * g).addcmul_(tanh, w_tanh).addcmul_(relu, w_relu).addcmul_(sigmoid, w_sigmoid)


class Recurrence(torch.autograd.Function):
    """(input products, hidden state, ...) -> outputs (T, B, H) of all steps.

    Args:
        product_TBD: the embedded words times their half of the first matrix; D = 2H: gates, then values.
        hidden_BH: the state before.
        first_HD: the other half of the first matrix.
        mask_BH: dropout of every state before a product.
        share_E5: for each edge W, and the weights of tanh, relu, sigmoid and identity.
        running_mean, running_var: of the one BatchNorm, updated in place.
        matrix_HD: one a node.
    """

    @staticmethod
    def forward(
        ctx: Any,
        product_TBD: Tensor,
        hidden_BH: Tensor,
        first_HD: Tensor,
        mask_BH: Tensor,
        share_E5: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        *matrix_HD: Tensor,
    ) -> Tensor:
        """All steps, one after the other; what backward needs is written into arrays of all steps."""
        (batch, hidden), steps, nodes = hidden_BH.shape, len(product_TBD), len(matrix_HD)
        state = product_TBD.new_empty(steps, nodes + 1, batch, hidden)
        masked, inverse = torch.empty_like(state), product_TBD.new_empty(steps, nodes + 1, hidden)
        edge, first = (
            product_TBD.new_empty(steps, len(share_E5), batch, 2 * hidden),
            torch.empty_like(product_TBD),
        )
        output, before = (
            product_TBD.new_empty(steps + 1, batch, hidden),
            product_TBD.new_empty(steps, batch, hidden),
        )
        output[0] = hidden_BH
        share = share_E5[:, :, None, None]

        def normalise(step: int, node: int, x_BH: Tensor) -> None:
            y, _, inverse[step, node] = torch.native_batch_norm(
                x_BH, None, None, running_mean, running_var, True, MOMENTUM, EPSILON
            )
            state[step, node] = y
            torch.mul(y, mask_BH, out=masked[step, node])

        for step in range(steps):
            torch.mul(output[step], mask_BH, out=before[step])
            torch.addmm(product_TBD[step], before[step], first_HD, out=first[step])
            gate, value = first[step].chunk(2, -1)
            normalise(step, 0, torch.lerp(output[step], value.tanh_(), gate.sigmoid_()))
            for node, (a, b) in enumerate(pairwise(starts(nodes))):
                torch.mm(
                    masked[step, : node + 1].view(-1, hidden),
                    matrix_HD[node],
                    out=edge[step, a:b].view(-1, 2 * hidden),
                )
                gate, g = edge[step, a:b].chunk(2, -1)
                blend = mixed(g, g.tanh(), g.relu(), g.sigmoid(), share[a:b])
                normalise(
                    step,
                    node + 1,
                    torch.lerp(share[a:b, 0] * state[step, : node + 1], blend, gate.sigmoid_()).sum(0),
                )
            torch.mean(state[step, 1:], 0, out=output[step + 1])
        kept = (state, masked, inverse, edge, first, output, before)
        ctx.save_for_backward(product_TBD, hidden_BH, first_HD, mask_BH, share_E5, *kept, *matrix_HD)
        return output[1:].clone()

    @staticmethod
    def backward(ctx: Any, grad_TBH: Tensor) -> tuple[Tensor | None, ...]:
        """The steps in reverse order. Where this gradient is to be differentiated in turn, that of the
        definition instead."""
        product, before_first, first_HD, mask, share_E5, *rest = ctx.saved_tensors
        state, masked, inverse, edge, first, output, before, *matrices = rest
        if torch.is_grad_enabled():
            return differentiable(
                (product, before_first, first_HD, share_E5, *matrices), mask, grad_TBH, ctx.needs_input_grad
            )
        (batch, hidden), steps, nodes = mask.shape, len(state), len(matrices)
        needs, begin, share = ctx.needs_input_grad, starts(nodes), share_E5[:, :, None, None]
        d_edge, d_first, d_share = torch.empty_like(edge), torch.empty_like(first), torch.zeros_like(share_E5)
        d_node, d_output = torch.empty_like(state[0]), torch.zeros_like(mask)

        def normalised(step: int, node: int, d: Tensor) -> Tensor:
            y = state[step, node]
            centred = d - d.mean(0)
            return torch.mul(
                centred.addcmul_(y, (d * y).mean(0), value=-1), inverse[step, node], out=d_node[node]
            )

        for step in range(steps - 1, -1, -1):
            gate, g = edge[step].chunk(2, -1)
            g, kept = g.contiguous(), 1 - gate
            values = (
                torch.cat([state[step, : node + 1] for node in range(nodes)]),
                g.tanh(),
                g.relu(),
                g.sigmoid(),
                g,
            )
            slope, through = slopes(gate, kept, values, share, out=d_edge[step]), share[:, 0] * kept
            d_output = d_output + grad_TBH[step]
            d_state = torch.cat((torch.zeros_like(d_output)[None], (d_output / nodes).expand(nodes, -1, -1)))
            for node in range(nodes - 1, -1, -1):
                a, b = begin[node : node + 2]
                d = normalised(step, node + 1, d_state[node + 1])
                slope[a:b].view(node + 1, batch, 2, hidden).mul_(d[:, None])
                d_masked = torch.mm(slope[a:b].view(-1, 2 * hidden), matrices[node].t()).view(
                    node + 1, batch, hidden
                )
                d_state[: node + 1].addcmul_(d_masked, mask).addcmul_(through[a:b], d)
            if needs[4]:
                d_share += share_gradient(d_node[1:], gate, kept, values)
            d = normalised(step, 0, d_state[0])
            gate, value = first[step].chunk(2, -1)
            torch.cat(
                (gate * (1 - gate) * (value - output[step]) * d, gate * (1 - value * value) * d),
                -1,
                out=d_first[step],
            )
            d_output = torch.mm(d_first[step], first_HD.t()) * mask + (1 - gate) * d

        d_matrix = [
            masked[:, : node + 1].reshape(-1, hidden).t() @ d_edge[:, a:b].reshape(-1, 2 * hidden)
            if needs[7 + node]
            else None
            for node, (a, b) in enumerate(pairwise(begin))
        ]
        d_first_HD = before.view(-1, hidden).t() @ d_first.view(-1, 2 * hidden) if needs[2] else None
        return d_first, d_output, d_first_HD, None, d_share, None, None, *d_matrix


def differentiable(
    inputs: tuple[Tensor, ...], mask_BH: Tensor, grad_TBH: Tensor, needs: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """What `Recurrence.backward` returns, with a gradient of its own."""
    product, hidden, first, share, *matrices = alone = [
        x.view_as(x) for x in inputs
    ]  # so that no input counts as part of another
    outputs = defined(product, hidden, first, mask_BH, share, matrices, everything(len(matrices)), by_batch)
    wanted = [x for x, need in zip(alone, (*needs[:3], needs[4], *needs[7:]), strict=True) if need]
    found = iter(torch.autograd.grad(outputs, wanted, grad_TBH, create_graph=True))
    return tuple(next(found) if need else None for need in needs)


def slopes(gate: Tensor, kept: Tensor, values: tuple[Tensor, ...], share: Tensor, out: Tensor) -> Tensor:
    """(E, B, 2H): derivative of each edge's output by its product: gates' half, values' half."""
    state, tanh, relu, sigmoid, g = values
    _, w_tanh, w_relu, w_sigmoid, w_identity = share.unbind(1)
    slope = (w_relu * relu.sign()).add_(w_identity)
    slope.addcmul_(1 - tanh * tanh, w_tanh).addcmul_(sigmoid * (1 - sigmoid), w_sigmoid)
    difference = mixed(g, tanh, relu, sigmoid, share).sub_(share[:, 0] * state)
    return torch.cat((difference.mul_(gate).mul_(kept), slope.mul_(gate)), -1, out=out)


def share_gradient(d_NBH: Tensor, gate: Tensor, kept: Tensor, values: tuple[Tensor, ...]) -> Tensor:
    """(E, 5) of one step, given the gradient of every node before its BatchNorm."""
    d_EBH = torch.cat([d.expand(node + 1, -1, -1) for node, d in enumerate(d_NBH)])
    d_blend = (d_EBH * gate).flatten(1)
    dots = [torch.linalg.vecdot(d_blend, value.flatten(1)) for value in values[1:]]
    return torch.stack([torch.linalg.vecdot((d_EBH * kept).flatten(1), values[0].flatten(1)), *dots], 1)
