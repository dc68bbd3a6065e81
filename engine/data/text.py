"""Text as three splits of words, side by side in columns, and the windows that backpropagation through time
reads.

Penn Treebank as Mikolov (2010) prepared it is a folder with ptb.train.txt, ptb.valid.txt and ptb.test.txt:
words between spaces, one sentence a line, each ended by <eos>. Windows follow AWD-LSTM (2017,
arXiv:1708.02182): their lengths are random, so that an epoch does not cut at the same words as the last.
"""

from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from engine.config import Config
from engine.data.load import Digits, ImageFolder, Located, Npz, Split, Torchvision
from engine.errors import UserError
from engine.seed import numpy_generator

END, UNKNOWN = "<eos>", "<unk>"
NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("ptb.train.txt", "train.txt"),
    "val": ("ptb.valid.txt", "valid.txt", "val.txt"),
    "test": ("ptb.test.txt", "test.txt"),
}
SHORTEST, BEYOND, HALVED = 5, 20, 0.05  # words; words more than bptt; share of windows that are half as long


class Grammar(Config):
    """Sentences of a small made-up grammar, embedded: always the same text, for tests and first steps."""

    name: Literal["grammar"] = "grammar"
    sentences: int = Field(
        4000, ge=10, description="sentences to train on; a tenth of that for validation, and for testing"
    )


class TextFolder(Config):
    """A folder with ptb.train.txt, ptb.valid.txt and ptb.test.txt, or train.txt, valid.txt and test.txt;
    UTF-8."""

    name: Literal["text"] = "text"
    path: Located = Field(description="the folder")


AnyData = Annotated[
    Digits | Npz | Torchvision | ImageFolder | Grammar | TextFolder, Field(discriminator="name")
]


class Text(NamedTuple):
    """The words, numbered in the order of their first appearance in the training text."""

    vocabulary: list[str]
    splits: dict[Split, Tensor]


def load_text(config: Grammar | TextFolder) -> Text:
    """The text. A word that the training text lacks counts as `<unk>`.

    Raises:
        UserError: a file is missing, unreadable or has no words.
    """
    words = (
        _generated(config)
        if isinstance(config, Grammar)
        else {split: _read(config.path, split) for split in NAMES}
    )
    number = {word: i for i, word in enumerate(dict.fromkeys(words["train"]))}
    strange = {word for found in words.values() for word in found} - number.keys()
    if strange:
        number.setdefault(UNKNOWN, len(number))
    splits = {
        split: torch.tensor([number.get(word, number.get(UNKNOWN, 0)) for word in found])
        for split, found in words.items()
    }
    return Text(list(number), splits)


def _read(folder: Path, split: Split) -> list[str]:
    paths = [folder / name for name in NAMES[split] if (folder / name).is_file()]
    if not paths:
        raise UserError(
            f"Text folder '{folder}' has no {' or '.join(NAMES[split])}; name one that has with --data.path."
        )
    try:
        lines = paths[0].read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"Text '{paths[0]}' cannot be read as UTF-8 ({error}); convert or replace it."
        ) from None
    words = [word for line in lines for word in (*line.split(), END)]
    if words.count(END) == len(words):
        raise UserError(
            f"Text '{paths[0]}' has no words; put sentences into it, one a line, words between spaces."
        )
    return words


def _generated(config: Grammar) -> dict[Split, list[str]]:
    """Subjects agree with their verbs over what stands between them, so memory helps."""
    kinds = {
        "one": (
            ["bird", "miller", "river", "lantern", "child", "engine"],
            ["sings", "waits", "turns", "glows", "rests"],
        ),
        "many": (
            ["birds", "millers", "rivers", "lanterns", "children", "engines"],
            ["sing", "wait", "turn", "glow", "rest"],
        ),
    }
    adjectives, places = (
        ["old", "quiet", "green", "distant", "bright"],
        ["by the sea", "near the mill", "under two bridges", ""],
    )
    ends = ["at night", "in spring", "while snow falls", "again", ""]
    rng = numpy_generator(0, "grammar")

    def sentence() -> list[str]:
        nouns, verbs = kinds["one" if rng.random() < 0.5 else "many"]
        one_of = [adjectives, nouns, places, verbs, ends]
        return [
            "the",
            *(word for choice in one_of for word in choice[rng.integers(len(choice))].split()),
            END,
        ]

    counts: dict[Split, int] = {
        "train": config.sentences,
        "val": config.sentences // 10,
        "test": config.sentences // 10,
    }
    return {split: [word for _ in range(count) for word in sentence()] for split, count in counts.items()}


def columns(words_N: Tensor, batch: int) -> Tensor:
    """(rows, batch): the text cut into `batch` equal pieces that stand side by side; a rest is left out.

    Raises:
        UserError: it is too short for three rows.
    """
    rows = len(words_N) // batch
    if rows < 3:
        raise UserError(
            f"A text of {len(words_N)} words is too short for {batch} columns; use a smaller batch or more "
            "text."
        )
    return words_N[: rows * batch].view(batch, rows).t().contiguous()


def windows(rows: int, bptt: int, rng: np.random.Generator, spread: float) -> list[tuple[int, int]]:
    """(first row, length) of windows that cover a text in columns once.

    bptt: the usual length; one window in twenty is half as long. spread: deviation of the lengths around
        that; 0: none (search).
    """
    shortest = min(SHORTEST, bptt)
    most = rows // min(shortest, max(bptt // 2, 1)) + 1
    usual = np.where(rng.random(most) < HALVED, bptt / 2, bptt)
    length = rng.normal(usual, spread).clip(shortest, bptt + BEYOND) if spread else usual.clip(1)
    ends = np.cumsum(length.astype(int))
    starts = [0, *(int(end) for end in ends if end < rows - 2)]  # the last window has two words or more
    return [(start, min(int(end), rows - 1) - start) for start, end in zip(starts, ends, strict=False)]


def window(text_RB: Tensor, start: int, length: int) -> tuple[Tensor, Tensor]:
    """Words of a window and the words that follow them, both (T, B); shorter at the end of the text."""
    length = min(length, len(text_RB) - 1 - start)
    return text_RB[start : start + length], text_RB[start + 1 : start + 1 + length]
