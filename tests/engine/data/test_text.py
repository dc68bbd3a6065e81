"""Text: vocabulary, columns, and windows that cover every word once."""

from pathlib import Path

import numpy as np
import pytest
import torch

from engine.data.text import Grammar, TextFolder, columns, load_text, window, windows
from engine.errors import UserError


def test_penn_treebank_is_read_whole(nas_data: Path) -> None:
    text = load_text(TextFolder(path=nas_data / "ptb"))
    assert len(text.vocabulary) == 10_000
    assert [len(text.splits[split]) for split in ("train", "val", "test")] == [929_589, 73_760, 82_430]
    assert text.vocabulary[:2] == ["aer", "banknote"]
    assert " ".join(text.vocabulary[i] for i in text.splits["val"][:3]) == "consumers may want"


def test_wikitext_is_read_as_the_reference_codes_read_it(tmp_path: Path) -> None:
    # Empty lines end, too, and other ends of lines than \n are spaces between words.
    lines = " \n = Title = \n \n A line\u2028goes on . \n"
    for split in ("train", "valid", "test"):
        (tmp_path / f"wiki.{split}.tokens").write_text(lines, encoding="utf-8")
    end = ["<eos>"]
    expected = [*end, "=", "Title", "=", *end, *end, "A", "line", "goes", "on", ".", *end]
    assert TextFolder(name="text", path=tmp_path).read()["val"] == expected


def test_a_word_not_trained_on_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a b\nc a\n")
    (tmp_path / "valid.txt").write_text("a d\n")
    (tmp_path / "test.txt").write_text(" b \n\n")
    text = load_text(TextFolder(path=tmp_path))
    assert text.vocabulary == ["a", "b", "<eos>", "c", "<unk>"]
    assert {split: words.tolist() for split, words in text.splits.items()} == {
        "train": [0, 1, 2, 3, 0, 2],
        "val": [0, 4, 2],
        "test": [1, 2, 2],
    }


def test_mistakes_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no ptb.train.txt or wiki.train.tokens or train.txt"):
        load_text(TextFolder(path=tmp_path))
    (tmp_path / "train.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="cannot be read as UTF-8"):
        load_text(TextFolder(path=tmp_path))
    (tmp_path / "train.txt").write_text("\n\n")
    with pytest.raises(UserError, match="has no words"):
        load_text(TextFolder(path=tmp_path))
    with pytest.raises(UserError, match="too short for 4 columns"):
        columns(torch.arange(11), 4)


def test_columns_are_pieces_of_the_text() -> None:
    assert columns(torch.arange(11), 3).t().tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


@pytest.mark.parametrize("spread", [0.0, 5.0])
@pytest.mark.parametrize(("rows", "bptt"), [(3, 35), (1000, 35), (1000, 3), (37, 35), (1001, 1)])
def test_windows_cover_the_text_once(rows: int, bptt: int, spread: float) -> None:
    found = windows(rows, bptt, np.random.default_rng(0), spread)
    text = torch.arange(rows)[:, None]
    pairs = [window(text, *each) for each in found]
    read = torch.cat([x for x, _ in pairs]).flatten()
    assert torch.equal(read, torch.arange(len(read))) and len(read) in (rows - 1, rows - 2)
    assert all(
        torch.equal(y, x + 1) and len(x) == length for (x, y), (_, length) in zip(pairs, found, strict=True)
    )
    lengths = [length for _, length in found]
    assert max(lengths) <= bptt + (20 if spread else 0)
    assert min(lengths[:-1], default=100) >= (min(5, bptt) if spread else max(bptt // 2, 1))
    assert found == windows(rows, bptt, np.random.default_rng(0), spread)


def test_windows_are_as_long_as_said() -> None:
    lengths = [length for _, length in windows(100_000, 35, np.random.default_rng(1), 0)][:-1]
    assert set(lengths) == {17, 35}
    assert lengths.count(17) / len(lengths) == pytest.approx(0.05, abs=0.02)
    spread = [length for _, length in windows(100_000, 35, np.random.default_rng(1), 5)][:-1]
    assert np.mean(spread) == pytest.approx(33.6, abs=0.5) and 5 < np.std(spread) < 8


def test_the_grammar_is_always_the_same_text() -> None:
    text, again = load_text(Grammar(sentences=50)), load_text(Grammar(sentences=50))
    assert text.vocabulary == again.vocabulary and torch.equal(text.splits["train"], again.splits["train"])
    assert int((text.splits["val"] == text.vocabulary.index("<eos>")).sum()) == 5
