"""A trained recurrent cell as an ONNX file: one word at a time, with the hidden state handed in and out.

Inputs `tokens` int64 (1, B) and `hidden` float32 (1, B, H), zeros before the first word; outputs `logits` (1,
B, V) for the word that follows and `next`, the next `hidden`. Proved on validation text, step after step,
before the file gets its name.
"""

import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import torch
from pydantic import Field

from engine.config import Config, Located, validate
from engine.data.sources import AnyData
from engine.data.text import Grammar, TextFolder, load_text
from engine.errors import UserError
from engine.onnx_file import set_metadata, traced
from engine.run import Run, read_json, versions, write_json
from export.manifest import digest
from export.verify import TOLERANCE, open_session
from oneshot.language import TrainedLanguage, load_language
from oneshot.networks.recurrent import step_module

COLUMNS, STEPS = 4, 64  # of validation text


class WrittenStep(NamedTuple):
    """The file and what its comparison came to. words: how many were tried."""

    path: Path
    words: int
    relative_error: float
    complaint: str


class _Source(Config):
    data: AnyData = Field()


def is_language(run: Path) -> bool:
    """Whether a finished run is one of a recurrent cell."""
    return Run.open(run).finished and "vocabulary" in read_json(run / "model.json")


def export_step(run: Path, moved: Located | None = None) -> WrittenStep:
    """export/cell.onnx, its words in cell.txt (line i is token i) and what it is in cell.json. moved: where
    the text is now.

    Raises:
        UserError: the run or its text is missing or damaged.
    """
    trained = load_language(run)
    words_SB = _validation(run, moved, trained)
    path = run / "export" / "cell.onnx"
    for stale in (path, path.with_suffix(".txt"), path.with_suffix(".json")):
        stale.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {
        "genotype": trained.model.genotype.model_dump(mode="json"),
        "hidden": trained.model.hidden,
        "words": len(trained.model.vocabulary),
        "inputs": "tokens int64 (1, B), hidden float32 (1, B, H), zeros at first",
        "outputs": (
            "logits float32 (1, B, V) of the next word, next float32 (1, B, H): the hidden of the next step"
        ),
        "versions": versions(),
    }
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        candidate = Path(folder) / path.name
        _write(trained, candidate, facts)
        error, same = _compare(trained, candidate, words_SB)
        complaint = (
            ""
            if error <= TOLERANCE and same
            else f"differs from torch by more than {TOLERANCE:g}, or in the likeliest word"
        )
        if not complaint:
            candidate.replace(path)
            path.with_suffix(".txt").write_text("\n".join(trained.model.vocabulary) + "\n", encoding="utf-8")
            compared = {"relative_error": error, "words": words_SB.numel()}
            write_json(path.with_suffix(".json"), facts | {"parity": compared, "sha256": digest(path)})
    return WrittenStep(path, words_SB.numel(), error, complaint)


def _validation(run: Path, moved: Path | None, trained: TrainedLanguage) -> torch.Tensor:
    """(steps, columns) of the run's validation text."""
    data = validate(_Source, {"data": Run(run).config["data"]}, str(run / "config.yaml")).data
    assert isinstance(data, Grammar | TextFolder)
    if moved is not None:
        data = TextFolder(name="text", path=moved)
    text = load_text(data)
    if text.vocabulary != trained.model.vocabulary:
        raise UserError(
            f"The text of run '{run}' has other words than the one it was trained on; restore it or name it "
            "with --data."
        )
    words = text.splits["val"][: COLUMNS * STEPS]
    return words[: len(words) // COLUMNS * COLUMNS].view(COLUMNS, -1).t().contiguous()


def _write(trained: TrainedLanguage, path: Path, facts: dict[str, object]) -> None:
    step = step_module(trained.network)
    example = (torch.zeros(1, 2, dtype=torch.int64), trained.network.start(2))
    free = ({1: torch.export.Dim("batch", min=1)}, {1: torch.export.Dim.AUTO})  # both are the same axis
    model = traced(step, example, ["tokens", "hidden"], ["logits", "next"], free)
    set_metadata(model, facts)
    onnx.save(model, path)


@torch.no_grad()
def _compare(trained: TrainedLanguage, path: Path, words_SB: torch.Tensor) -> tuple[float, bool]:
    """(largest difference of logits relative to the largest, whether the likeliest word is always the
    same)."""
    session = open_session(path)
    wanted_SBV = trained.network(words_SB, trained.network.start(words_SB.shape[1])).logits_TBV.numpy()
    hidden, found = trained.network.start(words_SB.shape[1]).numpy(), []
    for row in words_SB.numpy():
        logits, hidden = session.run(["logits", "next"], {"tokens": row[None], "hidden": hidden})
        found.append(logits[0])
    got_SBV = np.stack(found)
    error = float(np.abs(got_SBV - wanted_SBV).max() / np.abs(wanted_SBV).max())
    first, second = np.partition(wanted_SBV, -2)[..., [-1, -2]].transpose(2, 0, 1)
    clear = first - second > TOLERANCE * np.abs(wanted_SBV).max()
    return error, bool((got_SBV.argmax(-1) == wanted_SBV.argmax(-1))[clear].all())
