"""The recurrent search cell over a whole sequence as one fast operation with a gradient of its own.

It computes what `oneshot.networks.recurrence` defines. Backward, what does not depend on a later gradient is
computed for all edges of a step at once; then each node costs one product; and each matrix gets its gradient
in one product at the end, not in one a step. Shapes are as in that module.
"""

from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from oneshot.networks.recurrence import (
    EPSILON,
    MOMENTUM,
    CellMatrices,
    EdgeTerms,
    first_edges,
    full_plan,
    normalise_by_batch,
    recurrence_by_definition,
)

# Positions among the inputs of `Recurrence.apply`, for `needs_input_grad`.
FIRST, SHARE, NODES = 2, 4, 7


class Trace(NamedTuple):
    """What the forward pass stores of all steps for the backward pass; N nodes.

    Args:
        state: (T, N + 1, B, H): s_0 and the nodes after BatchNorm.
        masked: the same under dropout.
        inverse: (T, N + 1, H): the inverse deviations of their BatchNorms.
        edge: (T, E, B, D): the products of the edges; gates after the sigmoid.
        first: (T, B, D): the products into s_0; gates after the sigmoid, values after tanh.
        output: (T + 1, B, H): hidden states, the one before the first step included.
        before: (T, B, H): the hidden state before each step, under dropout.
    """

    state: Tensor
    masked: Tensor
    inverse: Tensor
    edge: Tensor
    first: Tensor
    output: Tensor
    before: Tensor


def _empty_trace(product_TBD: Tensor, hidden_BH: Tensor, edges: int, nodes: int) -> Trace:
    # Allocated once: a tensor for each node and step would be thousands of small ones.
    (batch, hidden), steps = hidden_BH.shape, len(product_TBD)
    state = product_TBD.new_empty(steps, nodes + 1, batch, hidden)
    return Trace(
        state=state,
        masked=torch.empty_like(state),
        inverse=product_TBD.new_empty(steps, nodes + 1, hidden),
        edge=product_TBD.new_empty(steps, edges, batch, 2 * hidden),
        first=torch.empty_like(product_TBD),
        output=product_TBD.new_empty(steps + 1, batch, hidden),
        before=product_TBD.new_empty(steps, batch, hidden),
    )


def blend_operations(g: Tensor, tanh: Tensor, relu: Tensor, sigmoid: Tensor, share_E511: Tensor) -> Tensor:
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
        matrix_HD: one for each node.
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
        hidden, nodes = hidden_BH.shape[1], len(matrix_HD)
        trace = _empty_trace(product_TBD, hidden_BH, len(share_E5), nodes)
        state, masked, inverse, edge, first, output, before = trace
        output[0] = hidden_BH
        share = share_E5[:, :, None, None]

        def normalise(step: int, node: int, x_BH: Tensor) -> None:
            y, _, inverse[step, node] = torch.native_batch_norm(
                x_BH, None, None, running_mean, running_var, True, MOMENTUM, EPSILON
            )
            state[step, node] = y
            torch.mul(y, mask_BH, out=masked[step, node])

        for step in range(len(product_TBD)):
            torch.mul(output[step], mask_BH, out=before[step])
            torch.addmm(product_TBD[step], before[step], first_HD, out=first[step])
            # s_0; gate and value are overwritten by what backward needs of them.
            gate, value = first[step].chunk(2, -1)
            normalise(step, 0, torch.lerp(output[step], value.tanh_(), gate.sigmoid_()))
            for node, (a, b) in enumerate(pairwise(first_edges(nodes))):
                # Node j reads s_0 to s_j at once: one product for all its edges.
                read = masked[step, : node + 1].view(-1, hidden)
                torch.mm(read, matrix_HD[node], out=edge[step, a:b].view(-1, 2 * hidden))
                gate, g = edge[step, a:b].chunk(2, -1)
                blend = blend_operations(g, g.tanh(), g.relu(), g.sigmoid(), share[a:b])
                kept = share[a:b, 0] * state[step, : node + 1]
                normalise(step, node + 1, torch.lerp(kept, blend, gate.sigmoid_()).sum(0))
            # The output is the mean of the nodes; s_0 is not among them.
            torch.mean(state[step, 1:], 0, out=output[step + 1])
        ctx.save_for_backward(product_TBD, hidden_BH, first_HD, mask_BH, share_E5, *trace, *matrix_HD)
        return output[1:].clone()  # backward reads `output`, which nobody may change

    @staticmethod
    def backward(ctx: Any, grad_TBH: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of all inputs.

        Where this gradient is to be differentiated in turn, the definition's gradient is taken instead.
        """
        product, before_first, first_HD, mask, share_E5, *rest = ctx.saved_tensors
        trace, matrices = Trace(*rest[: len(Trace._fields)]), rest[len(Trace._fields) :]
        needs = ctx.needs_input_grad
        if torch.is_grad_enabled():
            inputs = (product, before_first, first_HD, share_E5, *matrices)
            return _differentiable(inputs, mask, grad_TBH, needs)
        backward = _BackwardPass(trace, CellMatrices(first_HD, matrices), mask, share_E5, needs[SHARE])
        d_output = torch.zeros_like(mask)
        # Backward through time: a step's hidden state got gradient from the step after it.
        for step in range(len(grad_TBH) - 1, -1, -1):
            d_output = backward.step(step, d_output + grad_TBH[step])
        d_first_HD = backward.first_matrix() if needs[FIRST] else None
        d_matrix = []
        for node in range(len(matrices)):
            d_matrix.append(backward.node_matrix(node) if needs[NODES + node] else None)
        return backward.d_first, d_output, d_first_HD, None, backward.d_share, None, None, *d_matrix


class _BackwardPass:
    """The steps in reverse order. It collects the gradients of all products, and of the shares.

    Args:
        trace: what forward wrote down.
        matrices: of the cell.
        mask_BH: dropout of every state before a product.
        share_E5: as in `Recurrence`.
        needs_share: whether its gradient is wanted.
    """

    def __init__(
        self, trace: Trace, matrices: CellMatrices, mask_BH: Tensor, share_E5: Tensor, needs_share: bool
    ):
        self.trace, self.matrices, self.mask, self.needs_share = trace, matrices, mask_BH, needs_share
        self.share = share_E5[:, :, None, None]
        self.nodes, (self.batch, self.hidden) = len(matrices.nodes), mask_BH.shape
        self.edges = first_edges(self.nodes)
        self.d_edge, self.d_first = torch.empty_like(trace.edge), torch.empty_like(trace.first)
        self.d_share = torch.zeros_like(share_E5)
        self.d_node = torch.empty_like(trace.state[0])  # of one step: before BatchNorm

    def step(self, step: int, d_output: Tensor) -> Tensor:
        """The gradient of the hidden state before a step, from that of the one after it."""
        trace, nodes = self.trace, self.nodes
        gate, g = trace.edge[step].chunk(2, -1)
        g, kept = g.contiguous(), 1 - gate
        read = torch.cat([trace.state[step, : node + 1] for node in range(nodes)])
        values = (read, g.tanh(), g.relu(), g.sigmoid(), g)
        # Both halves of the slope are known before any gradient of this step is.
        slope = _slopes(gate, kept, values, self.share, out=self.d_edge[step])
        through = self.share[:, 0] * kept
        d_nodes = (d_output / nodes).expand(nodes, -1, -1)  # the output is the mean of the nodes
        d_state = torch.cat((torch.zeros_like(d_output)[None], d_nodes))
        for node in range(nodes - 1, -1, -1):
            a, b = self.edges[node : node + 2]
            # All later nodes, which read this one, are done: its gradient is complete.
            d = self._before_norm(step, node + 1, d_state[node + 1])
            slope[a:b].view(node + 1, self.batch, 2, self.hidden).mul_(d[:, None])
            d_masked = torch.mm(slope[a:b].view(-1, 2 * self.hidden), self.matrices.nodes[node].t())
            d_masked = d_masked.view(node + 1, self.batch, self.hidden)
            d_state[: node + 1].addcmul_(d_masked, self.mask).addcmul_(through[a:b], d)
        if self.needs_share:
            self.d_share += _share_gradient(self.d_node[1:], gate, kept, values)
        return self._first_state(step, self._before_norm(step, 0, d_state[0]))

    def _first_state(self, step: int, d: Tensor) -> Tensor:
        """The gradient of the hidden state before a step, from that of s_0 before its BatchNorm."""
        gate, value = self.trace.first[step].chunk(2, -1)
        d_gate = gate * (1 - gate) * (value - self.trace.output[step]) * d
        torch.cat((d_gate, gate * (1 - value * value) * d), -1, out=self.d_first[step])
        return torch.mm(self.d_first[step], self.matrices.first_HD.t()) * self.mask + (1 - gate) * d

    def _before_norm(self, step: int, node: int, d: Tensor) -> Tensor:
        """The gradient of a state before its BatchNorm, from that of the state."""
        y = self.trace.state[step, node]
        # BatchNorm's gradient: less the mean, less the part along the normalised state.
        centred = d - d.mean(0)
        centred.addcmul_(y, (d * y).mean(0), value=-1)
        return torch.mul(centred, self.trace.inverse[step, node], out=self.d_node[node])

    def first_matrix(self) -> Tensor:
        """The gradient of the first matrix, of all steps at once."""
        return self.trace.before.view(-1, self.hidden).t() @ self.d_first.view(-1, 2 * self.hidden)

    def node_matrix(self, node: int) -> Tensor:
        """The gradient of a node's matrix, of all steps at once."""
        a, b = self.edges[node : node + 2]
        read = self.trace.masked[:, : node + 1].reshape(-1, self.hidden)
        return read.t() @ self.d_edge[:, a:b].reshape(-1, 2 * self.hidden)


def _differentiable(
    inputs: tuple[Tensor, ...], mask_BH: Tensor, grad_TBH: Tensor, needs: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """What `Recurrence.backward` returns, with a gradient of its own."""
    # Views, so that no input counts as part of another.
    views = [x.view_as(x) for x in inputs]
    product, hidden, first, share, *matrices = views
    edges = EdgeTerms(share, full_plan(len(matrices)))
    outputs = recurrence_by_definition(
        product, hidden, CellMatrices(first, matrices), mask_BH, edges, normalise_by_batch
    )
    needed = (*needs[: FIRST + 1], needs[SHARE], *needs[NODES:])
    wanted = [view for view, need in zip(views, needed, strict=True) if need]
    found = iter(torch.autograd.grad(outputs, wanted, grad_TBH, create_graph=True))
    return tuple(next(found) if need else None for need in needs)


def _slopes(gate: Tensor, kept: Tensor, values: tuple[Tensor, ...], share: Tensor, out: Tensor) -> Tensor:
    """(E, B, 2H): derivative of each edge's output by its product: gates' half, values' half."""
    state, tanh, relu, sigmoid, g = values
    _, w_tanh, w_relu, w_sigmoid, w_identity = share.unbind(1)
    # The sign of a rectified number is the derivative of the ReLU: 0 or 1.
    slope = (w_relu * relu.sign()).add_(w_identity)
    slope.addcmul_(1 - tanh * tanh, w_tanh).addcmul_(sigmoid * (1 - sigmoid), w_sigmoid)
    difference = blend_operations(g, tanh, relu, sigmoid, share).sub_(share[:, 0] * state)
    return torch.cat((difference.mul_(gate).mul_(kept), slope.mul_(gate)), -1, out=out)


def _share_gradient(d_NBH: Tensor, gate: Tensor, kept: Tensor, values: tuple[Tensor, ...]) -> Tensor:
    """(E, 5) of one step, given the gradient of every node before its BatchNorm."""
    d_EBH = torch.cat([d.expand(node + 1, -1, -1) for node, d in enumerate(d_NBH)])
    d_blend = (d_EBH * gate).flatten(1)
    d_kept = (d_EBH * kept).flatten(1)
    state, *operations = values
    dots = [torch.linalg.vecdot(d_kept, state.flatten(1))]
    dots += [torch.linalg.vecdot(d_blend, value.flatten(1)) for value in operations]
    return torch.stack(dots, 1)
