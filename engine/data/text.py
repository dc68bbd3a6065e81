"""Text as three splits of words, in columns, and the windows that backpropagation through time reads.

Penn Treebank as Mikolov (2010) prepared it is a folder with ptb.train.txt, ptb.valid.txt and ptb.test.txt:
words between spaces, one sentence a line, each ended by <eos>. WikiText-2 (2017, arXiv:1609.07843) comes as
wiki.train.tokens, wiki.valid.tokens and wiki.test.tokens, in which every line ends so, empty ones too, as in
AWD-LSTM's and DARTS's codes. Windows follow AWD-LSTM (2017,
arXiv:1708.02182): their lengths are random, so that two epochs do not cut the text at the same words.
"""

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from engine.config import Config, Located
from engine.data.dataset import Split
from engine.errors import UserError
from engine.seed import numpy_generator

END, UNKNOWN = "<eos>", "<unk>"
NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("ptb.train.txt", "wiki.train.tokens", "train.txt"),
    "val": ("ptb.valid.txt", "wiki.valid.tokens", "valid.txt", "val.txt"),
    "test": ("ptb.test.txt", "wiki.test.tokens", "test.txt"),
}
FEWEST_ROWS = 3  # of a text in columns
# Lengths of windows, as in AWD-LSTM: bptt is the usual one.
SHORTEST = 5  # words in the shortest window
BEYOND = 20  # most words that a window has more than bptt
HALVED = 0.05  # share of windows that are half as long as usual
Words = dict[Split, list[str]]


class TextSource(Config):
    """A source of text. A child says how its words are read, in `read`."""

    def read(self) -> Words:
        """Read the words of each split, with `<eos>` at the end of each sentence.

        Raises:
            UserError: a file is missing, unreadable or has no words.
        """
        raise NotImplementedError


class Grammar(TextSource):
    """Sentences of a small made-up grammar, embedded: always the same text, for tests and first steps."""

    name: Literal["grammar"] = "grammar"
    sentences: int = Field(
        4000, ge=10, description="sentences to train on; a tenth of that for validation, and for testing"
    )

    def read(self) -> Words:
        """Make the sentences. Verbs agree with subjects over the words between, so that memory helps."""
        rng = numpy_generator(0, "grammar")
        held = self.sentences // 10
        counts: dict[Split, int] = {"train": self.sentences, "val": held, "test": held}
        words: Words = {}
        for split, count in counts.items():
            words[split] = []
            for _ in range(count):
                words[split].extend(_sentence(rng))
        return words


class TextFolder(TextSource):
    """A folder with the files of Penn Treebank, of WikiText-2, or train.txt, valid.txt, test.txt; UTF-8."""

    name: Literal["text"] = "text"
    path: Located = Field(description="the folder")

    def read(self) -> Words:
        """The words of the three files."""
        return {split: _words_of(self.path, split) for split in NAMES}


class Text(NamedTuple):
    """The words, numbered in the order of their first appearance in the training text.

    Args:
        vocabulary: the words by their number.
        splits: numbers of the words of each split (N,), int64.
    """

    vocabulary: list[str]
    splits: dict[Split, Tensor]


def load_text(config: TextSource) -> Text:
    """The text of a source. A word that the training text lacks counts as `<unk>`.

    Raises:
        UserError: a file is missing, unreadable or has no words; or `config` is not a source of text.
    """
    if not isinstance(config, TextSource):
        raise UserError(
            f"load_text takes the settings of a source of text, not {config!r}; give Grammar() or "
            "TextFolder(path=...)."
        )
    words = config.read()
    # A dict keeps the order of first appearance and drops repetitions; a set would keep no order.
    number = {word: i for i, word in enumerate(dict.fromkeys(words["train"]))}
    # `<unk>` is added only where a split needs it, and then once.
    for found in words.values():
        if not number.keys() >= set(found):
            number.setdefault(UNKNOWN, len(number))
    splits: dict[Split, Tensor] = {}
    for split, found in words.items():
        splits[split] = torch.tensor([number.get(word, number.get(UNKNOWN, 0)) for word in found])
    return Text(list(number), splits)


def _words_of(folder: Path, split: Split) -> list[str]:
    paths = [folder / name for name in NAMES[split] if (folder / name).is_file()]
    if not paths:
        raise UserError(
            f"Text folder '{folder}' has no {' or '.join(NAMES[split])}; name one that has with --data.path."
        )
    try:
        # Not splitlines(), which ends lines at other marks of Unicode, too; the reference codes do not.
        lines = paths[0].read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"Text '{paths[0]}' cannot be read as UTF-8 ({error}); convert or replace it."
        ) from None
    words: list[str] = []
    for line in lines:
        words += [*line.split(), END]
    # A file of empty lines has ends of sentences, and nothing else.
    if words.count(END) == len(words):
        raise UserError(
            f"Text '{paths[0]}' has no words; put sentences into it, one a line, words between spaces."
        )
    return words


ADJECTIVES = ["old", "quiet", "green", "distant", "bright"]
PLACES = ["by the sea", "near the mill", "under two bridges", ""]
ENDS = ["at night", "in spring", "while snow falls", "again", ""]
ONE = ["bird", "miller", "river", "lantern", "child", "engine"]
MANY = ["birds", "millers", "rivers", "lanterns", "children", "engines"]
ONE_DOES = ["sings", "waits", "turns", "glows", "rests"]
MANY_DO = ["sing", "wait", "turn", "glow", "rest"]


def _sentence(rng: np.random.Generator) -> list[str]:
    nouns, verbs = (ONE, ONE_DOES) if rng.random() < 0.5 else (MANY, MANY_DO)
    words = ["the"]
    for choices in (ADJECTIVES, nouns, PLACES, verbs, ENDS):
        words += choices[rng.integers(len(choices))].split()
    return [*words, END]


def columns(words_N: Tensor, batch: int) -> Tensor:
    """The text cut into equal pieces that stand side by side as columns.

    Args:
        words_N: numbers of the words of a text.
        batch: number of columns.

    Returns:
        (rows, batch). Words that do not fill a row are left out at the end.

    Raises:
        UserError: the text is too short for three rows.
    """
    rows = len(words_N) // batch
    if rows < FEWEST_ROWS:
        raise UserError(
            f"A text of {len(words_N)} words is too short for {batch} columns; use a smaller batch or more "
            "text."
        )
    return words_N[: rows * batch].view(batch, rows).t().contiguous()


def windows(rows: int, bptt: int, rng: np.random.Generator, spread: float) -> list[tuple[int, int]]:
    """Windows (first row, length) that cover a text in columns once.

    Args:
        rows: rows of the text.
        bptt: the usual length; one window in twenty is half as long.
        rng: draws the lengths.
        spread: deviation of the lengths around the usual one; 0: none, as in a search.
    """
    shortest = min(SHORTEST, bptt)
    # All lengths are drawn at once: as many as are needed if every window is the shortest possible.
    most = rows // min(shortest, max(bptt // 2, 1)) + 1
    usual = np.where(rng.random(most) < HALVED, bptt / 2, bptt)
    if spread:
        length = rng.normal(usual, spread).clip(shortest, bptt + BEYOND)
    else:
        length = usual.clip(1)
    ends = [int(end) for end in np.cumsum(length.astype(int))]
    # A window predicts the word after each of its words, so the last one needs two rows or more.
    starts = [0, *(end for end in ends if end < rows - 2)]
    # Not strict: of the lengths drawn, those after the end of the text are left over.
    return [(start, min(end, rows - 1) - start) for start, end in zip(starts, ends, strict=False)]


def window(text_RB: Tensor, start: int, length: int) -> tuple[Tensor, Tensor]:
    """Words of a window and the words to predict, which follow them; both (T, B).

    Args:
        text_RB: the text in columns.
        start: first row of the window.
        length: rows of the window, fewer at the end of the text.
    """
    length = min(length, len(text_RB) - 1 - start)
    return text_RB[start : start + length], text_RB[start + 1 : start + 1 + length]
