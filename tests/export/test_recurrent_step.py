"""A recurrent cell as a file that reads one word at a time."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from engine.command.cli import parse
from engine.errors import UserError
from export import recurrent
from export.onnx import Export
from oneshot.retrain import Retrain


@pytest.fixture(scope="module")
def cell_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("cell") / "run"
    small = ["--data.sentences", "200", "--language.hidden", "8", "--epochs", "1"]
    small += ["--batch-size", "16"]
    words = ["--genotype", "DARTS_V1_recurrent", "--data", "grammar", *small, "--out", str(run)]
    assert parse(Retrain, words).execute() == 0
    return run


@pytest.mark.slow
def test_the_exported_step_reads_a_text_as_torch_does(cell_run: Path) -> None:
    assert parse(Export, ["--run", str(cell_run)]).execute() == 0
    path = cell_run / "export" / "cell.onnx"
    facts = json.loads(path.with_suffix(".json").read_text())
    assert facts["parity"]["relative_error"] < 1e-5 and facts["parity"]["words"] >= 150
    vocabulary = path.with_suffix(".txt").read_text().splitlines()
    session = ort.InferenceSession(str(path))
    hidden = np.zeros((1, 1, facts["hidden"]), np.float32)
    for word in ("the", "old", "miller"):
        logits, hidden = session.run(
            ["logits", "next"], {"tokens": np.array([[vocabulary.index(word)]]), "hidden": hidden}
        )
    assert logits.shape == (1, 1, len(vocabulary)) and np.isfinite(logits).all()
    assert str(cell_run) not in str(onnx.load(path).SerializeToString())


@pytest.mark.slow
def test_a_file_that_differs_is_not_kept_and_an_interruption_changes_nothing(
    cell_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = parse(Export, ["--run", str(cell_run)])
    assert command.execute() == 0
    files = [cell_run / "export" / f"cell{suffix}" for suffix in (".onnx", ".txt", ".json")]
    before = [file.read_bytes() for file in files]

    def interrupted(*words: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(recurrent, "_write_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            command.execute()
    assert [file.read_bytes() for file in files] == before
    monkeypatch.setattr(recurrent, "_compare_step", lambda *words: (0.5, True))
    assert command.execute() == 1
    assert "differs from torch by more than 0.0001" in capsys.readouterr().out
    assert not [file for file in files if file.exists()]


def test_what_a_cell_has_no_use_for_is_refused(cell_run: Path) -> None:
    for words in (["--arch", "largest"], ["--target", "nnapi"], ["--bake", "normalize"]):
        with pytest.raises(UserError, match=f"leave out {words[0]}"):
            parse(Export, ["--run", str(cell_run), *words]).execute()
