"""Training of a recurrent cell: it learns, resumes bit for bit, averages, recovers, and is as large as
published."""

import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.checkpoint import load_weights
from engine.command.cli import parse
from engine.config import Config
from engine.data.text import Grammar, load_text
from engine.errors import UserError
from engine.run import Run, read_lines
from oneshot.language import Language, cross_entropy, load_language
from oneshot.language_training import LanguageTrainer, NotFiniteError, train_language
from oneshot.networks.dropout import Dropout
from oneshot.networks.recurrent import CellNetwork
from oneshot.retrain import Retrain
from oneshot.spaces.genotype import Cell, Genotype

V2 = ["sigmoid 0", "relu 1", "relu 1", "identity 1", "tanh 2", "sigmoid 5", "tanh 3", "relu 5"]
NODES = tuple(((line.split()[0], int(line.split()[1])),) for line in V2)
DARTS_V2 = Genotype(space="recurrent", cells={"recurrent": Cell(nodes=NODES, output=tuple(range(1, 9)))})
TEXT = load_text(Grammar(sentences=300))
LIGHT = Dropout(output=0.1, hidden=0.1, inputs=0.1, embedding=0.1, words=0.1)
SMALL = Language(hidden=16, epochs=3, batch=8, bptt=10, dropout=LIGHT, val_batch=2)


class Command(Config):
    """What a command would write into config.yaml."""

    language: Language


def start(path: Path, settings: Language = SMALL, resume: bool = False) -> Run:
    return Run.start(path, Command(language=settings), resume=resume, overwrite=False)


def train(path: Path, settings: Language = SMALL, resume: bool = False) -> int:
    return train_language(start(path, settings, resume), DARTS_V2, TEXT, settings, 0, torch.device("cpu"))


def trainer(path: Path, settings: Language = SMALL) -> LanguageTrainer:
    return LanguageTrainer(start(path, settings), DARTS_V2, TEXT, settings, 0, torch.device("cpu"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "cell"
    assert train(path) == 0
    return path


def test_the_published_network_has_its_published_size() -> None:
    with torch.device("meta"):
        network = CellNetwork(10_000, 850, DARTS_V2.cells["recurrent"])
    assert sum(p.numel() for p in network.parameters()) == 22_960_000


def test_perplexity_falls(run: Path) -> None:
    points = read_lines(run / "metrics.jsonl")
    seen = [p["val_perplexity"] for p in points if "val_perplexity" in p]
    assert len(seen) == 3 and seen[2] < seen[0] < len(TEXT.vocabulary)
    assert points[-1]["best_val_perplexity"] == min(seen)
    assert points[-1]["test_perplexity"] < 0.5 * len(TEXT.vocabulary)


def test_a_trained_network_is_loaded_again(run: Path) -> None:
    network, model = load_language(run)
    assert model.genotype == DARTS_V2 and model.vocabulary == TEXT.vocabulary
    wanted = read_lines(run / "metrics.jsonl")[-1]["test_perplexity"]
    assert math.exp(cross_entropy(network, TEXT.splits["test"], 1, 10)) == pytest.approx(wanted, rel=1e-9)
    # the windows of an evaluation change nothing: the hidden state is carried over
    assert math.exp(cross_entropy(network, TEXT.splits["test"], 1, 37)) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.slow
def test_a_stopped_run_ends_with_the_same_weights(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = LanguageTrainer.update

    def stop_in_the_second_epoch(self: LanguageTrainer, *window: Any) -> None:
        update(self, *window)
        if (self.epoch, self.batches_done) == (1, 4):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(LanguageTrainer, "update", stop_in_the_second_epoch)
    assert train(tmp_path / "cell") == 130
    monkeypatch.undo()
    with pytest.raises(UserError, match="not a finished run"):
        load_language(tmp_path / "cell")
    assert train(tmp_path / "cell", resume=True) == 0
    ours, theirs = (load_weights(path / "weights.safetensors") for path in (tmp_path / "cell", run))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    points, others = (read_lines(path / "metrics.jsonl") for path in (tmp_path / "cell", run))
    assert points[-1] == others[-1]


def test_the_average_begins_when_validation_gets_no_better(tmp_path: Path) -> None:
    """It is the mean of the weights after each step from then on, and is what is kept and resumed."""
    settings = SMALL.model_copy(update={"patience": 0})
    training = trainer(tmp_path / "cell", settings)
    training.losses = [0.0]  # as if an epoch had been perfect
    training.end_epoch()
    assert training.average is not None
    seen = []
    for start_, length in training.windows(1)[:4]:
        training.update(
            training.text_RB[start_ : start_ + length], training.text_RB[start_ + 1 : start_ + 1 + length]
        )
        seen.append(training.network.first_2HD.detach().clone())
    torch.testing.assert_close(training.weights.first_2HD.detach(), torch.stack(seen).mean(0))
    training.save()
    again = LanguageTrainer(training.folder, DARTS_V2, TEXT, settings, 0, torch.device("cpu"))
    assert again.step == training.step and torch.equal(again.weights.first_2HD, training.weights.first_2HD)
    assert torch.equal(again.hidden, training.hidden)


def test_a_loss_that_is_not_finite_leads_back_to_the_best_weights(tmp_path: Path) -> None:
    training = trainer(tmp_path / "cell")
    training.end_epoch()
    best = training.network.first_2HD.detach().clone()
    training.network.first_2HD.data.fill_(math.nan)
    with pytest.raises(NotFiniteError):
        training.end_epoch()
    before = training.windows(1)
    training.go_back()
    assert torch.equal(training.network.first_2HD, best) and training.epoch == 1
    assert training.windows(1) != before


def test_a_run_that_cannot_learn_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not finite in epoch 1.*lower learning rate \(now 1e\+30\)"):
        train(tmp_path / "cell", SMALL.model_copy(update={"lr": 1e30, "clip": 1e30}))


def test_a_cell_for_images_is_refused(tmp_path: Path) -> None:
    cell = Cell(nodes=((("skip_connect", 0),), (("skip_connect", 0),), (("skip_connect", 0),)), output=(3,))
    genotype = Genotype(space="nasbench201", cells={"cell": cell})
    with pytest.raises(UserError, match="space 'nasbench201' is no recurrent cell"):
        train_language(start(tmp_path / "x"), genotype, TEXT, SMALL, 0, torch.device("cpu"))


def test_epochs_and_batch_size_of_the_command_hold_for_text(tmp_path: Path) -> None:
    tiny = ["--data", "grammar", "--data.sentences", "60", "--language.hidden", "8", "--batch-size", "8"]

    def retrain(name: str, *flags: str) -> list[dict[str, Any]]:
        command = parse(Retrain, [*tiny, "--language.val-batch", "2", "--out", str(tmp_path / name), *flags])
        assert command.execute() == 0
        return [point for point in read_lines(tmp_path / name / "metrics.jsonl") if "val_perplexity" in point]

    straight = retrain("straight", "--epochs", "2")
    assert len(straight) == 2
    # A finished run grows, as on images.
    assert len(retrain("grown", "--epochs", "1")) == 1
    grown = retrain("grown", "--epochs", "2", "--resume")
    assert [p["val_perplexity"] for p in grown] == [p["val_perplexity"] for p in straight]


def test_recipes_of_text_are_the_published_settings() -> None:
    # DARTS's released code, as it evaluates on Penn Treebank and as it transfers to WikiText-2.
    penn = parse(Retrain, ["--data", "text", "--data.path", "ptb"])
    published = Language(**penn.language.model_dump(), epochs=penn.epochs, batch=penn.batch_size)
    assert (penn.config, published) == ("oneshot/retrain_ptb", Language())
    wikitext = parse(Retrain, ["--config", "oneshot/retrain_wikitext2"])
    changed = {"hidden": 700, "weight_decay": 5e-7}
    dropout = penn.language.dropout.model_copy(update={"hidden": 0.15})
    assert wikitext.language == penn.language.model_copy(update=changed | {"dropout": dropout})
    assert (wikitext.epochs, wikitext.batch_size) == (8000, 64)
