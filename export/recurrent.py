"""A trained recurrent cell as an ONNX file that reads one word at a time.

The hidden state is handed in and out. Inputs are `tokens` int64 (1, B) and `hidden` float32 (1, B, H), which
is zeros before the first word. Outputs are `logits` (1, B, V) for the word that follows, and `next`, the next
`hidden`. The file is compared on validation text, step after step, before it gets its name.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import torch
from pydantic import Field

from engine.checkpoint import weights_digest
from engine.config import Config, Located, validate
from engine.data.sources import AnyData
from engine.data.text import Grammar, TextFolder, load_text
from engine.errors import UserError
from engine.onnx_file import set_metadata, traced
from engine.run import Run, digest, read_json, versions, write_json
from engine.runs.writing import atomic, publish, work_folder
from export.formats.onnx import open_onnxruntime
from export.verify import TOLERANCE
from oneshot.language import TrainedLanguage, load_language
from oneshot.networks.recurrent import step_module

COLUMNS, STEPS = 4, 64  # of validation text: enough for errors of the hidden state to add up


class WrittenStep(NamedTuple):
    """What became of the file of one recurrent cell.

    Args:
        path: the file; it exists if there is no complaint.
        words: how many words were compared.
        relative_error: largest difference of logits, relative to the largest logit.
        complaint: what is wrong, or empty.
    """

    path: Path
    words: int
    relative_error: float
    complaint: str


class _TextOfRun(Config):
    """The part of config.yaml that says which text a run learned from."""

    data: AnyData = Field()


def is_language(run: Path) -> bool:
    """Whether a finished run is one of a recurrent cell."""
    return Run.open(run).finished and "vocabulary" in read_json(run / "model.json")


def export_step(run: Path, moved: Located | None = None) -> WrittenStep:
    """Write export/cell.onnx, its words in cell.txt (line i is token i - 1) and its facts in cell.json.

    Args:
        run: folder of a finished run of a recurrent cell.
        moved: where the text is now, if it was moved.

    Raises:
        UserError: the run or its text is missing or damaged.
    """
    trained = load_language(run)
    words_SB = _validation_text(run, moved, trained)
    path = run / "export" / "cell.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {
        "weights_sha256": weights_digest(run),
        "genotype": trained.model.genotype.model_dump(mode="json"),
        "hidden": trained.model.hidden,
        "words": len(trained.model.vocabulary),
        "inputs": "tokens int64 (1, B), hidden float32 (1, B, H), zeros at first",
        "outputs": (
            "logits float32 (1, B, V) of the next word, next float32 (1, B, H): the hidden of the next step"
        ),
        "versions": versions(),
    }
    complaint = ""
    with work_folder(path.parent) as folder:
        candidate = folder / path.name
        _write_step(trained, candidate, facts)
        error, same = _compare_step(trained, candidate, words_SB)
        if error <= TOLERANCE and same:
            publish(candidate, path)
            with atomic(path.with_suffix(".txt")) as words:
                words.write_text("\n".join(trained.model.vocabulary) + "\n", encoding="utf-8")
            compared = {"relative_error": error, "words": words_SB.numel()}
            write_json(path.with_suffix(".json"), facts | {"parity": compared, "sha256": digest(path)})
        else:
            complaint = f"differs from torch by more than {TOLERANCE:g}, or in the likeliest word"
            # Nobody should take an older file for the one that failed.
            for stale in (path, path.with_suffix(".txt"), path.with_suffix(".json")):
                stale.unlink(missing_ok=True)
    return WrittenStep(path, words_SB.numel(), error, complaint)


def _validation_text(run: Path, moved: Path | None, trained: TrainedLanguage) -> torch.Tensor:
    """The first words of the run's validation text (S, B), as B columns that are read at the same time."""
    data = validate(_TextOfRun, {"data": Run(run).config["data"]}, str(run / "config.yaml")).data
    assert isinstance(data, Grammar | TextFolder)
    if moved is not None:
        data = TextFolder(name="text", path=moved)
    text = load_text(data)
    # Token numbers are positions in the vocabulary: of another text every word would be a wrong one.
    if text.vocabulary != trained.model.vocabulary:
        raise UserError(
            f"The text of run '{run}' has other words than the one it was trained on; restore it or name it "
            "with --data."
        )
    words = text.splits["val"][: COLUMNS * STEPS]
    return words[: len(words) // COLUMNS * COLUMNS].view(COLUMNS, -1).t().contiguous()


def _write_step(trained: TrainedLanguage, path: Path, facts: dict[str, object]) -> None:
    """Write one step of the cell as an ONNX file."""
    step = step_module(trained.network)
    # A batch of two: torch's exporter takes an axis of length one for a constant.
    example = (torch.zeros(1, 2, dtype=torch.int64), trained.network.start(2))
    # Both inputs have the same batch axis: the first names it, and torch finds out that the second is equal.
    free = ({1: torch.export.Dim("batch", min=1)}, {1: torch.export.Dim.AUTO})
    model = traced(step, example, ["tokens", "hidden"], ["logits", "next"], free)
    set_metadata(model, facts)
    onnx.save(model, path)


@torch.no_grad()
def _compare_step(trained: TrainedLanguage, path: Path, words_SB: torch.Tensor) -> tuple[float, bool]:
    """Read the words with the file and with torch.

    Returns:
        The largest difference of logits relative to the largest, and whether the likeliest word is always the
        same, but for ties in torch.
    """
    session = open_onnxruntime(path)
    start = trained.network.start(words_SB.shape[1])
    wanted_SBV = trained.network(words_SB, start).logits_TBV.numpy()
    hidden, found = start.numpy(), []
    # The file's own hidden state is handed on, so that its errors add up as they would on a device.
    for row in words_SB.numpy():
        logits, hidden = session.run(["logits", "next"], {"tokens": row[None], "hidden": hidden})
        found.append(logits[0])
    got_SBV = np.stack(found)
    largest = np.abs(wanted_SBV).max()
    error = float(np.abs(got_SBV - wanted_SBV).max() / largest)
    # Where the two likeliest words are nearly a tie in torch, either may win in the file.
    first, second = np.partition(wanted_SBV, -2)[..., [-1, -2]].transpose(2, 0, 1)
    clear = first - second > TOLERANCE * largest
    same = got_SBV.argmax(-1) == wanted_SBV.argmax(-1)
    return error, bool(same[clear].all())
