"""A recurrent cell and its words: the settings of its training, and what a finished run of it gives."""

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from engine.checkpoint import load_weights
from engine.command.progress import Advance
from engine.compute.precision import float32_as_exported
from engine.config import Config, validate
from engine.data.text import columns, window
from engine.errors import UserError
from engine.run import Run, read_json
from oneshot.networks.dropout import Dropout
from oneshot.networks.recurrent import KIND, CellNetwork
from oneshot.spaces.genotype import Genotype

# The hidden state goes through thousands of steps, each of which would round it to 8 bits.
NO_BF16 = "A recurrent cell is trained in float32 or tf32; leave out --precision bf16."


class LanguageSettings(Config):
    """Settings that only a recurrent cell has; the defaults are those published for Penn Treebank."""

    hidden: int = Field(850, ge=1, description="units of the cell and of the embedding")
    bptt: int = Field(
        35, ge=1, description="usual words in a window; the learning rate is proportional to its length"
    )
    lr: float = Field(20.0, gt=0, description="learning rate")
    clip: float = Field(0.25, gt=0, description="largest norm of the gradient")
    weight_decay: float = Field(8e-7, ge=0, description="L2 on every weight")
    slowness: float = Field(1e-3, ge=0, description="penalty on the squared change of the cell's outputs")
    dropout: Dropout = Field(Dropout(words=0.1), description="rates of variational dropout")
    patience: int = Field(
        5,
        ge=0,
        description="average weights once validation is worse than its best of this many epochs ago or more",
    )
    val_batch: int = Field(10, ge=1, description="columns of the validation text; the test text is one")


class Language(LanguageSettings):
    """All settings of the training of a recurrent cell, those included that images have, too."""

    epochs: int = Field(8000, ge=1, description="passes over the training text")
    batch: int = Field(64, ge=1, description="columns of text that are read at once")


class LanguageModel(Config):
    """model.json: what the weights belong to."""

    genotype: Genotype
    hidden: int
    vocabulary: list[str]


class TrainedLanguage(NamedTuple):
    """A trained network, in evaluation mode on CPU, and the words it knows."""

    network: CellNetwork
    model: LanguageModel


def load_language(path: Path) -> TrainedLanguage:
    """The network of a finished run.

    Raises:
        UserError: there is none.
    """
    # In an unfinished run the best weights may still be those of an early epoch.
    if not Run(path).finished:
        raise UserError(
            f"'{path}' is not a finished run of a recurrent cell; train one, or continue it with --resume."
        )
    model = validate(LanguageModel, read_json(path / "model.json"), str(path / "model.json"))
    network = CellNetwork(len(model.vocabulary), model.hidden, model.genotype.cells[KIND])
    load_best_weights(network, path)
    return TrainedLanguage(network.eval(), model)


def load_best_weights(network: CellNetwork, path: Path) -> None:
    """The weights of the run folder `path`, which are the best on validation.

    Raises:
        UserError: they are of another network.
    """
    try:
        network.load_state_dict(load_weights(path / "weights.safetensors"))
    except RuntimeError:
        raise UserError(
            f"The weights in '{path}' are not those of its model.json; copy both again or train again."
        ) from None


def _no_progress(note: str) -> None:
    """For callers that show no progress."""


@torch.no_grad()
@float32_as_exported()
def cross_entropy(
    network: CellNetwork, words_N: Tensor, batch: int, bptt: int, advance: Advance = _no_progress
) -> float:
    """Cross-entropy in nats a word, of a text that is read without dropout.

    Args:
        network: in evaluation mode or not: without masks there is no dropout.
        words_N: the text as token ids, on the network's device.
        batch: columns that it is cut into; the first word of a column is given.
        bptt: words of a window. It changes nothing but memory: the hidden state is carried over.
        advance: called after each window.
    """
    # The last words that fill no row of columns are left out.
    text, hidden = columns(words_N, batch), network.start(batch)
    # float64: a sum over a long text in float32 would lose digits.
    total = torch.zeros((), dtype=torch.float64, device=hidden.device)
    for start in range(0, len(text) - 1, bptt):
        x, y = window(text, start, bptt)
        logits, hidden, _ = network(x, hidden)
        total += F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum")
        advance("")
    return float(total) / ((len(text) - 1) * batch)
