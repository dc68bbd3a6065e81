"""The search cell of DARTS (2019, arXiv:1806.09055) over a whole sequence as one differentiable operation.

Same mathematics as the definition, `RecurrentNetwork.cell`, in fewer and larger kernels. An edge's sum over operations
o of w_o (s + c (o(g) - s)) is W s (1 - c) + c sum_o w_o o(g), with W the sum of the w_o. Backward, everything that does not
depend on a later gradient is computed for all steps and edges at once; then each node costs one product; and each
matrix gets its gradient in one product at the end, instead of one a step. Gradients are exact but cannot be differentiated again.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

EPSILON, MOMENTUM = 1e-5, 0.1  # of BatchNorm


def starts(nodes: int) -> list[int]:
    """The first edge of each node, and the number of edges."""
    return [node * (node + 1) // 2 for node in range(nodes + 1)]


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
        steps, batch, hidden, nodes = len(product_TBD), *hidden_BH.shape, len(matrix_HD)
        state = product_TBD.new_empty(steps, nodes + 1, batch, hidden)
        masked, inverse = torch.empty_like(state), product_TBD.new_empty(steps, nodes + 1, hidden)
        edge, first = product_TBD.new_empty(steps, len(share_E5), batch, 2 * hidden), torch.empty_like(product_TBD)
        output, before = product_TBD.new_empty(steps + 1, batch, hidden), product_TBD.new_empty(steps, batch, hidden)
        output[0] = hidden_BH
        share = share_E5[:, :, None, None]

        def normalise(step: int, node: int, x_BH: Tensor) -> None:
            y, _, inverse[step, node] = torch.native_batch_norm(x_BH, None, None, running_mean, running_var, True, MOMENTUM, EPSILON)
            state[step, node] = y
            torch.mul(y, mask_BH, out=masked[step, node])

        for step in range(steps):
            torch.mul(output[step], mask_BH, out=before[step])
            torch.addmm(product_TBD[step], before[step], first_HD, out=first[step])
            gate, value = first[step].split(hidden, -1)
            normalise(step, 0, torch.lerp(output[step], value.tanh_(), gate.sigmoid_()))
            for node, (a, b) in enumerate(pairwise(starts(nodes))):
                torch.mm(masked[step, : node + 1].view(-1, hidden), matrix_HD[node], out=edge[step, a:b].view(-1, 2 * hidden))
                gate, g = edge[step, a:b].split(hidden, -1)
                blend = mixed(g, g.tanh(), g.relu(), g.sigmoid(), share[a:b])
                normalise(step, node + 1, torch.lerp(share[a:b, 0] * state[step, : node + 1], blend, gate.sigmoid_()).sum(0))
            torch.mean(state[step, 1:], 0, out=output[step + 1])
        ctx.save_for_backward(first_HD, mask_BH, share_E5, state, masked, inverse, edge, first, output, before, *matrix_HD)
        return output[1:].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TBH: Tensor) -> tuple[Tensor | None, ...]:
        """The steps in reverse order."""
        first_HD, mask, share_E5, state, masked, inverse, edge, first, output, before, *matrices = ctx.saved_tensors
        steps, nodes, batch, hidden = len(state), len(matrices), *mask.shape
        begin = starts(nodes)
        share = share_E5[:, :, None, None]
        gate, g = edge[..., :hidden], edge[..., hidden:].contiguous()
        source = [i for node in range(nodes) for i in range(node + 1)]
        values = (state[:, source], g.tanh(), g.relu(), g.sigmoid(), g)
        kept = 1 - gate
        d_edge = slopes(gate, kept, values, share)
        d_first = first_slopes(first, output[:-1], hidden)
        d_node = torch.empty_like(state)
        through, rest = share[:, 0] * kept, 1 - first[..., :hidden]
        d_output = torch.zeros_like(mask)

        def normalised(step: int, node: int, d: Tensor) -> Tensor:
            y = state[step, node]
            centred = d - d.mean(0)
            return torch.mul(centred.addcmul_(y, (d * y).mean(0), value=-1), inverse[step, node], out=d_node[step, node])

        for step in range(steps - 1, -1, -1):
            d_output = d_output + grad_TBH[step]
            d_state = torch.cat((torch.zeros_like(d_output)[None], (d_output / nodes).expand(nodes, -1, -1)))
            for node in range(nodes - 1, -1, -1):
                a, b = begin[node : node + 2]
                d = normalised(step, node + 1, d_state[node + 1])
                d_edge[step, a:b].view(node + 1, batch, 2, hidden).mul_(d[:, None])
                d_masked = torch.mm(d_edge[step, a:b].view(-1, 2 * hidden), matrices[node].t()).view(node + 1, batch, hidden)
                d_state[: node + 1].addcmul_(d_masked, mask).addcmul_(through[step, a:b], d)
            d = normalised(step, 0, d_state[0])
            d_first[step].view(batch, 2, hidden).mul_(d[:, None])
            d_output = torch.mm(d_first[step], first_HD.t()) * mask + rest[step] * d

        needs = ctx.needs_input_grad
        d_matrix = [
            masked[:, : node + 1].reshape(-1, hidden).t() @ d_edge[:, a:b].reshape(-1, 2 * hidden) if needs[7 + node] else None
            for node, (a, b) in enumerate(pairwise(begin))
        ]
        d_first_HD = before.view(-1, hidden).t() @ d_first.view(-1, 2 * hidden) if needs[2] else None
        d_share = share_gradient(d_node[:, 1:], gate, kept, values) if needs[4] else None
        return d_first, d_output, d_first_HD, None, d_share, None, None, *d_matrix


def slopes(gate: Tensor, kept: Tensor, values: tuple[Tensor, ...], share: Tensor) -> Tensor:
    """(T, E, B, 2H): derivative of each edge's output by its product: gates' half, values' half."""
    state, tanh, relu, sigmoid, g = values
    _, w_tanh, w_relu, w_sigmoid, w_identity = share.unbind(1)
    slope = (w_relu * relu.sign()).add_(w_identity)
    slope.addcmul_(1 - tanh * tanh, w_tanh).addcmul_(sigmoid * (1 - sigmoid), w_sigmoid)
    difference = mixed(g, tanh, relu, sigmoid, share).sub_(share[:, 0] * state)
    return torch.cat((difference.mul_(gate).mul_(kept), slope.mul_(gate)), -1)


def first_slopes(first_TBD: Tensor, before_TBH: Tensor, hidden: int) -> Tensor:
    """(T, B, 2H): derivative of the first state by its product."""
    gate, value = first_TBD.split(hidden, -1)
    return torch.cat((gate * (1 - gate) * (value - before_TBH), gate * (1 - value * value)), -1)


def share_gradient(d_TNBH: Tensor, gate: Tensor, kept: Tensor, values: tuple[Tensor, ...]) -> Tensor:
    """(E, 5), given the gradient of every node before its BatchNorm."""
    steps, nodes = d_TNBH.shape[:2]
    target = [node for node in range(nodes) for _ in range(node + 1)]
    d_TEBH = d_TNBH[:, target]

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return torch.linalg.vecdot(a.view(steps, len(target), -1), b.view(steps, len(target), -1)).sum(0)

    d_blend = d_TEBH * gate
    return torch.stack([dot(d_TEBH.mul_(kept), values[0]), *(dot(d_blend, value) for value in values[1:])], 1)
