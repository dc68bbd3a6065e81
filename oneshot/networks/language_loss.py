"""Losses of recurrent cells on text, as the search and the training of a found cell call them."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from oneshot.axes.edge_weights import NetworkEdgeWeights
from oneshot.networks.dropout import NO_MASKS, Masks
from oneshot.networks.recurrent import LanguageOutput, RecurrentNetwork


def text_loss(output: LanguageOutput, targets_TB: Tensor) -> Tensor:
    """Cross-entropy in nats a word."""
    return F.cross_entropy(output.logits_TBV.flatten(0, 1), targets_TB.flatten())


def perplexity(nats: float) -> float:
    """exp of a mean loss; at most exp(700), which a diverging network exceeds."""
    # math.exp raises OverflowError from about 710 on.
    return math.exp(min(nats, 700.0))


def slowness(output: LanguageOutput) -> Tensor:
    """Mean squared change of the cell's outputs from step to step; 0 in a window of one word.

    AWD-LSTM (2017, arXiv:1708.02182).
    """
    output_TBH = output.output_TBH
    if len(output_TBH) == 1:
        return output_TBH.new_zeros(())
    return output_TBH.diff(dim=0).square().mean()


@dataclass
class TextBatch:
    """A window and everything else that its loss depends on.

    Args:
        tokens_TB: the words.
        targets_TB: the words that follow them.
        hidden_1BH: the state before.
        masks: the same in every forward of one architecture step. A function draws others in each, as the
            published code does; the second-order term is then mostly the noise between them.
        penalty: weight of `slowness`. The published code has it in the weights' loss (1e-3) and not in the
            architecture's.
        after: the hidden state after the last forward, written by `LanguageLoss`.
    """

    tokens_TB: Tensor
    targets_TB: Tensor
    hidden_1BH: Tensor
    masks: Masks | Callable[[], Masks] = NO_MASKS
    penalty: float = 0.0
    after: Tensor | None = None


class LanguageLoss:
    """The search network's loss on a batch, at its own weights or at others.

    It is a `LossFn`; it also writes the detached hidden state after the window into the batch.
    """

    def __init__(self, network: RecurrentNetwork):
        self.network = network

    def __call__(
        self,
        batch: TextBatch,
        edge_weights: NetworkEdgeWeights,
        weights: dict[str, Tensor] | None = None,
        create_graph: bool = False,
    ) -> Tensor:
        """Mean loss in nats a word, with the penalty of the batch.

        Args:
            batch: the window; its `after` is written.
            edge_weights: for the kind `recurrent`.
            weights: used in place of parameters and buffers; None: the network's own.
            create_graph: has no effect here, since every gradient can be differentiated again.
        """
        masks = batch.masks() if callable(batch.masks) else batch.masks
        inputs = (batch.tokens_TB, batch.hidden_1BH, edge_weights, masks)
        output = self.network(*inputs) if weights is None else functional_call(self.network, weights, inputs)
        batch.after = output.hidden_1BH.detach()
        loss = text_loss(output, batch.targets_TB)
        return loss + batch.penalty * slowness(output) if batch.penalty else loss
