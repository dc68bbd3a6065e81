"""Recurrent cells on text: the search network and the network of a genotype. DARTS (2019, arXiv:1806.09055),
section 3.2.

A step: s_0 = h + sigmoid(c)(tanh(g) - h) with [c, g] = [x, h] W_0. Node j is the sum over its edges i -> j of
w (s_i + sigmoid(c)(op(g) - s_i)) with [c, g] = s_i W_j. The output, which is also the next h, is the mean of
the nodes. In the search one BatchNorm without parameters normalises s_0 and all nodes of all steps; a found
cell has none. Embedding and decoder share one matrix.

Shapes: T steps, B sequences, V words, H hidden units (also of the embedding), D = 2H: gates, then values; E
edges.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from engine.config import Config
from oneshot.axes.edge_weights import Mixture
from oneshot.networks.recurrence import (
    EPSILON,
    MOMENTUM,
    OPERATIONS,
    Needed,
    Recurrence,
    defined,
    everything,
    first_state,
)
from oneshot.spaces.cells import find_space
from oneshot.spaces.genotype import Cell

KIND = "recurrent"
SPACE = find_space(KIND)
START = 0.04  # weights start uniformly between -START and START


class Dropout(Config):
    """Rates of variational dropout: one mask for all steps of a window."""

    output: float = Field(0.75, ge=0, lt=1, description="of the cell's outputs, before the decoder")
    hidden: float = Field(0.25, ge=0, lt=1, description="of every state, before a product")
    inputs: float = Field(0.75, ge=0, lt=1, description="of the cell's inputs, before the product")
    embedding: float = Field(0.2, ge=0, lt=1, description="of the embedded words")
    words: float = Field(0.0, ge=0, lt=1, description="of whole words, wherever they occur in the window")


class Masks(NamedTuple):
    """What dropout multiplies by: 0 or 1 / (1 - rate). None: 1."""

    output_BH: Tensor | None = None
    hidden_BH: Tensor | None = None
    inputs_BH: Tensor | None = None
    embedding_BH: Tensor | None = None
    words_V1: Tensor | None = None


NO_MASKS = Masks()


class Read(NamedTuple):
    """What a network says about a window: logits (T, B, V), the next hidden state (1, B, H), the cell's
    outputs (T, B, H)."""

    logits_TBV: Tensor
    hidden_1BH: Tensor
    output_TBH: Tensor


class LanguageNetwork(nn.Module):
    """What both networks have: words in, words out."""

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
        return dropped(dropped(x, masks.embedding_BH), masks.inputs_BH) @ self.first_2HD[: self.hidden]

    def decode(self, output_TBH: Tensor, masks: Masks) -> Read:
        """Logits of the outputs."""
        logits = F.linear(dropped(output_TBH, masks.output_BH), self.embedding_VH, self.bias_V)
        return Read(logits, output_TBH[-1:], output_TBH)


class RecurrentNetwork(LanguageNetwork):
    """The search network. In training mode BatchNorm uses the batch and keeps running averages; in evaluation
    mode it uses those.

    Where only the architecture's gradient is wanted, call it with parameters that need none, and where only
    theirs is, with weights of operations that need none: what nobody asks for is then not computed.
    """

    def __init__(self, words: int, hidden: int, generator: torch.Generator | None = None):
        super().__init__(words, hidden, SPACE.nodes, generator)
        self.register_buffer("running_mean", torch.zeros(hidden))
        self.register_buffer("running_var", torch.ones(hidden))
        self.running_mean: Tensor
        self.running_var: Tensor

    def forward(
        self, tokens_TB: Tensor, hidden_1BH: Tensor, mixtures: Mapping[str, Mixture], masks: Masks = NO_MASKS
    ) -> Read:
        """One window."""
        mixture, product, hidden = mixtures[KIND], self.embed(tokens_TB, masks), hidden_1BH[0]
        mask = torch.ones_like(hidden) if masks.hidden_BH is None else masks.hidden_BH
        first, share_E5 = self.first_2HD[self.hidden :], shares(mixture)
        if self.training and mixture.runs is None and mixture.offset_E is None and mixture.skip is None:
            outputs = Recurrence.apply(
                product, hidden, first, mask, share_E5, self.running_mean, self.running_var, *self.nodes
            )
        else:
            plan, beside = needed(mixture), (mixture.offset_E, mixture.skip)
            outputs = defined(
                product, hidden, first, mask, share_E5, list(self.nodes), plan, self.normalise, *beside
            )
        return self.decode(outputs, masks)

    def normalise(self, x_BH: Tensor) -> Tensor:
        """The one BatchNorm."""
        return F.batch_norm(
            x_BH, self.running_mean, self.running_var, None, None, self.training, MOMENTUM, EPSILON
        )


def needed(mixture: Mixture) -> list[Needed]:
    """What each node computes where a method samples edges and operations."""
    if mixture.runs is None:
        return everything(SPACE.nodes)
    plan = []
    for entering in SPACE.entering:
        names = [{SPACE.operations[o] for o in edge} - {"none"} for edge in mixture.runs[entering]]
        used = set[str]().union(*names)
        operations = [(column, name) for column, name in enumerate(OPERATIONS, start=1) if name in used]
        plan.append(Needed([i for i, found in enumerate(names) if found], operations))
    return plan


def shares(mixture: Mixture) -> Tensor:
    """(E, 5): for each edge the sum of the weights of all operations but none; then those of tanh, relu,
    sigmoid and identity."""
    weight = mixture.weight_EO
    if mixture.runs is not None:
        run = [[float(o in edge) for o in range(len(SPACE.operations))] for edge in mixture.runs]
        weight = weight * torch.tensor(run, dtype=weight.dtype).to(weight.device, non_blocking=True)
    if mixture.edge_E is not None:
        weight = weight * mixture.edge_E[:, None]
    each = torch.stack([weight[:, SPACE.operations.index(name)] for name in OPERATIONS], 1)
    return torch.cat((each.sum(1, keepdim=True), each), 1)


class CellNetwork(LanguageNetwork):
    """The network of a found cell."""

    def __init__(self, words: int, hidden: int, cell: Cell, generator: torch.Generator | None = None):
        super().__init__(words, hidden, len(cell.nodes), generator)
        self.cell = cell

    def forward(self, tokens_TB: Tensor, hidden_1BH: Tensor, masks: Masks = NO_MASKS) -> Read:
        """One window."""
        hidden, outputs = hidden_1BH[0], []
        for product_BD in self.embed(tokens_TB, masks).unbind():
            product = torch.addmm(product_BD, dropped(hidden, masks.hidden_BH), self.first_2HD[self.hidden :])
            states = [first_state(product, hidden)]
            for edges, matrix in zip(self.cell.nodes, self.nodes, strict=True):
                passed = [
                    self.edge(name, states[source], matrix, masks) for name, source in edges if name != "none"
                ]
                states.append(sum(passed[1:], passed[0]) if passed else torch.zeros_like(hidden))
            hidden = torch.stack([states[i] for i in self.cell.output]).mean(0)
            outputs.append(hidden)
        return self.decode(torch.stack(outputs), masks)

    def edge(self, operation: str, state_BH: Tensor, matrix_HD: Tensor, masks: Masks) -> Tensor:
        """What an edge passes on."""
        gate, g = (dropped(state_BH, masks.hidden_BH) @ matrix_HD).chunk(2, -1)
        return torch.lerp(state_BH, OPERATIONS[operation](g), gate.sigmoid())


def dropped(x: Tensor, mask: Tensor | None) -> Tensor:
    """`x` under a mask."""
    return x if mask is None else x * mask


def draw_masks(dropout: Dropout, network: LanguageNetwork, batch: int, generator: torch.Generator) -> Masks:
    """Masks for one window. The generator lives on the network's device."""

    def draw(rate: float, *shape: int) -> Tensor | None:
        if rate == 0:
            return None
        kept = torch.rand(shape, generator=generator, device=generator.device) >= rate
        return kept.to(network.bias_V.dtype) / (1 - rate)

    rates, states = (
        (dropout.output, dropout.hidden, dropout.inputs, dropout.embedding),
        (batch, network.hidden),
    )
    output, hidden, inputs, embedding = (draw(rate, *states) for rate in rates)
    return Masks(output, hidden, inputs, embedding, draw(dropout.words, network.words, 1))


def text_loss(read: Read, targets_TB: Tensor) -> Tensor:
    """Cross-entropy in nats a word."""
    return F.cross_entropy(read.logits_TBV.flatten(0, 1), targets_TB.flatten())


def perplexity(nats: float) -> float:
    """exp of a mean loss; at most exp(700), which a diverging network exceeds."""
    return math.exp(min(nats, 700.0))


def slowness(read: Read) -> Tensor:
    """Mean squared change of the cell's outputs from step to step; 0 in a window of one word (AWD-LSTM, 2017,
    arXiv:1708.02182)."""
    return (
        read.output_TBH.diff(dim=0).square().mean()
        if len(read.output_TBH) > 1
        else read.output_TBH.new_zeros(())
    )


def language_loss(
    network: Callable[..., Read],
    batch: tuple[Tensor, Tensor],
    hidden_1BH: Tensor,
    mixtures: Mapping[str, Mixture],
    masks: Masks = NO_MASKS,
    penalty: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Loss of the search network on a window (words, next words), both (T, B), and the detached hidden state
    after it.

    penalty: weight of `slowness`; the published code has it in the weights' loss (1e-3) and not in the
        architecture's.
    """
    tokens_TB, targets_TB = batch
    read = network(tokens_TB, hidden_1BH, mixtures, masks)
    loss = text_loss(read, targets_TB)
    return loss + penalty * slowness(read) if penalty else loss, read.hidden_1BH.detach()


@dataclass
class TextBatch:
    """A window and everything else that its loss depends on.

    Args:
        masks: the same in every forward of one architecture step. A function draws others in each, as the
            published code does; the second-order term is then mostly the noise between them.
        after: the hidden state after the last forward, written by `LanguageLoss`.
    """

    tokens_TB: Tensor
    targets_TB: Tensor
    hidden_1BH: Tensor
    masks: Masks | Callable[[], Masks] = NO_MASKS
    penalty: float = 0.0
    after: Tensor | None = None


class LanguageLoss:
    """`language_loss` as the search step calls it: on a batch, at the network's own weights or at others (by
    name)."""

    def __init__(self, network: RecurrentNetwork):
        self.network = network

    def __call__(
        self,
        batch: TextBatch,
        mixtures: Mapping[str, Mixture],
        weights: dict[str, Tensor] | None = None,
        twice: bool = False,
    ) -> Tensor:
        """Mean loss. weights: in place of parameters and buffers. twice: needs nothing, every gradient here
        has a gradient."""
        own = (
            self.network
            if weights is None
            else lambda *inputs: functional_call(self.network, weights, inputs)
        )
        masks = batch.masks() if callable(batch.masks) else batch.masks
        window = (batch.tokens_TB, batch.targets_TB)
        loss, batch.after = language_loss(own, window, batch.hidden_1BH, mixtures, masks, batch.penalty)
        return loss


class Step(nn.Module):
    """One word of a text at a time: token ids (1, B) and hidden (1, B, H) -> logits (1, B, V) and the next
    hidden (1, B, H)."""

    def __init__(self, network: CellNetwork):
        super().__init__()
        self.network = network

    def forward(self, tokens: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """One step."""
        read = self.network(tokens, hidden)
        return read.logits_TBV, read.hidden_1BH


def step_module(network: CellNetwork) -> Step:
    """What is exported: the network as a step with a hidden state, in evaluation mode."""
    return Step(network).eval()
