"""Recurrent cells on text: the search network and the network of a genotype.

DARTS (2019, arXiv:1806.09055), section 3.2. A step: s_0 = h + sigmoid(c)(tanh(g) - h) with [c, g] = [x, h]
W_0. Node j is the sum over its edges i -> j of w (s_i + sigmoid(c)(op(g) - s_i)) with [c, g] = s_i W_j. The
output, which is also the next h, is the mean of the nodes. In the search one BatchNorm without parameters
normalises s_0 and all nodes of all steps; a found cell has none. Embedding and decoder share one matrix.

Shapes: T steps, B sequences, V words, H hidden units (also of the embedding), D = 2H: gates, then values; E
edges.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oneshot.axes.edge_weights import EdgeWeights, NetworkEdgeWeights
from oneshot.networks.dropout import NO_MASKS, Dropout, Masks, dropped
from oneshot.networks.fused_recurrence import Recurrence
from oneshot.networks.recurrence import (
    EPSILON,
    MOMENTUM,
    OPERATIONS,
    CellMatrices,
    EdgeTerms,
    NodePlan,
    first_state,
    full_plan,
    recurrence_by_definition,
)
from oneshot.spaces.cells import find_space
from oneshot.spaces.genotype import Cell

KIND = "recurrent"
SPACE = find_space(KIND)
START = 0.04  # weights start uniformly between -START and START


class LanguageOutput(NamedTuple):
    """The output of a network on a window.

    Args:
        logits_TBV: logits of the words that follow.
        hidden_1BH: the next hidden state.
        output_TBH: the cell's outputs.
    """

    logits_TBV: Tensor
    hidden_1BH: Tensor
    output_TBH: Tensor


class LanguageNetwork(nn.Module):
    """What both networks have: words in, words out.

    Args:
        words: V.
        hidden: H.
        nodes: of the cell.
        generator: draws the weights, on CPU; None: torch's global one.
    """

    def __init__(self, words: int, hidden: int, nodes: int, generator: torch.Generator | None = None):
        super().__init__()

        def fresh(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape).uniform_(-START, START, generator=generator))

        self.words, self.hidden = words, hidden
        self.embedding_VH = fresh(words, hidden)
        self.bias_V = nn.Parameter(torch.zeros(words))
        self.first_2HD = fresh(2 * hidden, 2 * hidden)
        self.nodes = nn.ParameterList([fresh(hidden, 2 * hidden) for _ in range(nodes)])

    def start(self, batch: int) -> Tensor:
        """(1, B, H): the hidden state before the first word."""
        return self.bias_V.new_zeros(1, batch, self.hidden)

    def embed(self, tokens_TB: Tensor, masks: Masks) -> Tensor:
        """(T, B, D): the words' part of the first product, of all steps at once."""
        x = F.embedding(tokens_TB, self.embedding_VH)
        if masks.words_V1 is not None:
            x = x * masks.words_V1[tokens_TB]
        # The first matrix is split: the words' half is one large product, the state's half one a step.
        return dropped(dropped(x, masks.embedding_BH), masks.inputs_BH) @ self.first_2HD[: self.hidden]

    def decode(self, output_TBH: Tensor, masks: Masks) -> LanguageOutput:
        """Logits of the outputs."""
        # Embedding and decoder are one matrix.
        logits = F.linear(dropped(output_TBH, masks.output_BH), self.embedding_VH, self.bias_V)
        return LanguageOutput(logits, output_TBH[-1:], output_TBH)


class RecurrentNetwork(LanguageNetwork):
    """The search network.

    In training mode BatchNorm uses the batch and keeps running averages; in evaluation mode it uses those.
    If only the gradient of the architecture is wanted, call the network with parameters that require no
    gradient; if only the gradient of the parameters is wanted, with edge weights that require none. Then the
    other gradient is not computed.
    """

    def __init__(self, words: int, hidden: int, generator: torch.Generator | None = None):
        super().__init__(words, hidden, SPACE.nodes, generator)
        self.register_buffer("running_mean", torch.zeros(hidden))
        self.register_buffer("running_var", torch.ones(hidden))
        self.running_mean: Tensor
        self.running_var: Tensor

    def forward(
        self,
        tokens_TB: Tensor,
        hidden_1BH: Tensor,
        edge_weights: NetworkEdgeWeights,
        masks: Masks = NO_MASKS,
    ) -> LanguageOutput:
        """One window: the words `tokens_TB` after the hidden state `hidden_1BH`."""
        cell_weights, hidden = edge_weights[KIND], hidden_1BH[0]
        product = self.embed(tokens_TB, masks)
        mask = torch.ones_like(hidden) if masks.hidden_BH is None else masks.hidden_BH
        first, share_E5 = self.first_2HD[self.hidden :], shares(cell_weights)
        # The fast operation knows neither sampled edges nor offsets nor skips, nor running statistics.
        plain = cell_weights.active is None and cell_weights.offset_E is None and cell_weights.skip is None
        if self.training and plain:
            statistics = (self.running_mean, self.running_var)
            outputs = Recurrence.apply(product, hidden, first, mask, share_E5, *statistics, *self.nodes)
        else:
            edges = EdgeTerms(share_E5, node_plans(cell_weights), cell_weights.offset_E, cell_weights.skip)
            matrices = CellMatrices(first, list(self.nodes))
            outputs = recurrence_by_definition(product, hidden, matrices, mask, edges, self.normalise)
        return self.decode(outputs, masks)

    def normalise(self, x_BH: Tensor) -> Tensor:
        """The one BatchNorm."""
        return F.batch_norm(
            x_BH, self.running_mean, self.running_var, None, None, self.training, MOMENTUM, EPSILON
        )


def node_plans(cell_weights: EdgeWeights) -> list[NodePlan]:
    """What each node computes, where a method samples edges and operations."""
    if cell_weights.active is None:
        return full_plan(SPACE.nodes)
    plans = []
    for into in SPACE.entering:
        sources: list[int] = []
        used: set[str] = set()
        for source, active in enumerate(cell_weights.active[into]):
            names = {SPACE.operations[operation] for operation in active} - {"none"}
            # An edge on which nothing but none runs passes nothing on.
            if names:
                sources.append(source)
                used |= names
        operations = [(column, name) for column, name in enumerate(OPERATIONS, start=1) if name in used]
        plans.append(NodePlan(sources, operations))
    return plans


def shares(cell_weights: EdgeWeights) -> Tensor:
    """(E, 5): for each edge W, the weight of all operations but none together, and that of each.

    The order is W, tanh, relu, sigmoid, identity.
    """
    weight_EO = cell_weights.weight_EO
    if cell_weights.active is not None:
        weight_EO = weight_EO * cell_weights.runs().to(weight_EO.dtype)
    if cell_weights.edge_E is not None:
        weight_EO = weight_EO * cell_weights.edge_E[:, None]
    columns = [weight_EO[:, SPACE.operations.index(name)] for name in OPERATIONS]
    # None adds nothing, also not to W.
    weight_E4 = torch.stack(columns, 1)
    return torch.cat((weight_E4.sum(1, keepdim=True), weight_E4), 1)


class CellNetwork(LanguageNetwork):
    """The network of a found cell."""

    def __init__(self, words: int, hidden: int, cell: Cell, generator: torch.Generator | None = None):
        super().__init__(words, hidden, len(cell.nodes), generator)
        self.cell = cell

    def forward(self, tokens_TB: Tensor, hidden_1BH: Tensor, masks: Masks = NO_MASKS) -> LanguageOutput:
        """One window: the words `tokens_TB` after the hidden state `hidden_1BH`."""
        hidden, outputs = hidden_1BH[0], []
        for product_BD in self.embed(tokens_TB, masks).unbind():
            product = torch.addmm(product_BD, dropped(hidden, masks.hidden_BH), self.first_2HD[self.hidden :])
            # A found cell has no BatchNorm.
            states = [first_state(product, hidden)]
            for edges, matrix in zip(self.cell.nodes, self.nodes, strict=True):
                node: Tensor | None = None
                for name, source in edges:
                    if name != "none":
                        passed = self.edge(name, states[source], matrix, masks)
                        node = passed if node is None else node + passed
                states.append(torch.zeros_like(hidden) if node is None else node)
            hidden = torch.stack([states[i] for i in self.cell.output]).mean(0)
            outputs.append(hidden)
        return self.decode(torch.stack(outputs), masks)

    def edge(self, operation: str, state_BH: Tensor, matrix_HD: Tensor, masks: Masks) -> Tensor:
        """What an edge passes on."""
        gate, g = (dropped(state_BH, masks.hidden_BH) @ matrix_HD).chunk(2, -1)
        return torch.lerp(state_BH, OPERATIONS[operation](g), gate.sigmoid())


def draw_masks(dropout: Dropout, network: LanguageNetwork, batch: int, generator: torch.Generator) -> Masks:
    """Masks for one window. The generator lives on the network's device."""

    def draw(rate: float, *shape: int) -> Tensor | None:
        if rate == 0:
            return None
        kept = torch.rand(shape, generator=generator, device=generator.device) >= rate
        return kept.to(network.bias_V.dtype) / (1 - rate)

    # The order of the draws is part of what a seed means.
    return Masks(
        output_BH=draw(dropout.output, batch, network.hidden),
        hidden_BH=draw(dropout.hidden, batch, network.hidden),
        inputs_BH=draw(dropout.inputs, batch, network.hidden),
        embedding_BH=draw(dropout.embedding, batch, network.hidden),
        words_V1=draw(dropout.words, network.words, 1),
    )


class RecurrentStep(nn.Module):
    """One word of a text at a time, for export."""

    def __init__(self, network: CellNetwork):
        super().__init__()
        self.network = network

    def forward(self, tokens: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids (1, B) and hidden (1, B, H) -> logits (1, B, V) and the next hidden (1, B, H)."""
        output = self.network(tokens, hidden)
        return output.logits_TBV, output.hidden_1BH


def step_module(network: CellNetwork) -> RecurrentStep:
    """The module that is exported: the network as a step with a hidden state, in evaluation mode."""
    return RecurrentStep(network).eval()
