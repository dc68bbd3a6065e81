"""Whole commands on a pretended GPU: they end well, mix no devices, and their steps do not wait.

Every training is watched where its loop takes a batch and makes a step, from the second step on: the first
one fills caches. What comes between, such as an evaluation or a checkpoint, may wait, since numbers are read
there.
"""

import functools
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pretended_gpu import Gpu, pretended_gpu

from engine.command.cli import Command, parse
from engine.loop import EpochLoop
from engine.run import read_json, read_lines
from engine.runs.saving import Saving
from ofa.evaluate import Evaluate
from ofa.train import Train
from ofa.training.trainer import Trainer
from ofa.training.tuning_loop import TuningTogether
from ofa.tune import Tune
from oneshot.language_training import LanguageTrainer
from oneshot.retrain import Retrain, Retraining
from oneshot.search import Search
from oneshot.search_loop import SearchLoop
from predictors.collect import Collect
from predictors.report import Report
from predictors.select import Select

ROOT = Path(__file__).parents[2]
LOOPS: list[type[EpochLoop]] = [Trainer, TuningTogether, Retraining, LanguageTrainer, SearchLoop]
# What a step or a batch may wait for, and why.
WAITS = {
    # BestUp and WorstUp compare the losses of subnets to choose those that are trained: one copy of them all.
    "ofa/training/sandwich.py label_losses: tolist",
    # Cosines between gradients are numbers for metrics.jsonl, in the steps that --log-conflicts names.
    "ofa/training/conflicts.py _cosine: _local_scalar_dense",
}
PHASES = """[
    {"name": "largest", "epochs": 1, "lr": 0.1, "subnets": 0},
    {"name": "kernels", "epochs": 1, "lr": 0.05, "subnets": 1, "expand": 1},
    {"name": "all", "epochs": 1, "lr": 0.05, "subnets": 2}
]"""


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    """A pretended GPU that records the steps of every loop, and the batches that they take."""
    with pretended_gpu(ROOT) as gpu, monkeypatch.context() as patch:
        for loop in LOOPS:
            patch.setattr(loop, "update", recorded_step(gpu, loop.update))
            patch.setattr(loop, "batches", recorded_batches(gpu, loop.batches))
        yield gpu
    assert not gpu.mixed


def recorded_step(gpu: Gpu, update: Callable[..., None]) -> Callable[..., None]:
    begun: dict[int, int] = {}  # the first step of every loop

    @functools.wraps(update)
    def step(loop: EpochLoop, *batch: Any) -> None:
        if begun.setdefault(id(loop), loop.step) == loop.step:
            return update(loop, *batch)
        with gpu.record():
            return update(loop, *batch)

    return step


def recorded_batches(gpu: Gpu, batches: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    @functools.wraps(batches)
    def taken(loop: EpochLoop) -> Iterator[Any]:
        source = batches(loop)
        while True:
            with gpu.record():
                batch = next(source, None)
            if batch is None:
                return
            yield batch

    return taken


def run(command: type[Command], *flags: str, status: int = 0) -> None:
    """A command that ends well, or as `status` says."""
    assert parse(command, [*flags, "--device", "cuda"]).execute() == status


def check(gpu: Gpu) -> None:
    assert gpu.ops
    assert set(gpu.waits()) <= WAITS


@pytest.fixture(scope="module")
def supernet_run(tiny_yaml: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A supernet that was trained in three phases on the pretended GPU."""
    out = tmp_path_factory.mktemp("device") / "supernet"
    flags = ["--space", str(tiny_yaml), "--phases", PHASES, "--batch-size", "250", "--out", str(out)]
    flags += ["--ema", "0.9", "--data.mixup", "0.2", "--data.cutout", "2", "--data.flip"]
    flags += ["--evaluate-every", "3"]
    with pytest.MonkeyPatch.context() as patch, watched(patch) as gpu:
        run(Train, *flags, "--calibration-images", "128", "--evaluate-random", "1")
    check(gpu)
    assert (out / "teacher.safetensors").exists() and read_json(out / "env.json")
    return out


def test_stages_after_a_supernet(supernet_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """evaluate, collect, select, tune and report."""
    words = ["--run", str(supernet_run)]
    with watched(monkeypatch) as gpu:
        run(Evaluate, *words, "--per-class")
        run(Collect, *words, "--count", "12")
        assert parse(Select, [*words, "--flops", "80k"]).execute() == 0
        run(Tune, *words, "--epochs", "2", "--evaluate-every", "2")
        run(Report, *words, "--random", "1")
    check(gpu)
    assert len(read_lines(supernet_run / "pairs.jsonl")) == 12
    assert (supernet_run / "report" / "report.html").exists()


SUPERNET = "--batch-size 250 --calibration-images 128 --evaluate-random 1 --ema 0.9 "
# The recipe of digits has neither, and with them nothing that a step draws on the device.
SUPERNET += "--sandwich.dropout 0.1 --sandwich.drop-connect 0.1 "
RETRAIN = "--network.cells 3 --network.channels 4 --batch-size 250 --evaluate-every 5 "
CELL = "'|nor_conv_3x3~0|+|none~0|skip_connect~1|+|skip_connect~0|none~1|avg_pool_3x3~2|'"
TEXT = "--data.sentences 200 "
LANGUAGE = "--genotype DARTS_V2_recurrent --data grammar --language.hidden 6 "
RESUMED: dict[str, tuple[type[Command], str]] = {
    "one architecture": (Train, SUPERNET + "--arch smallest --data.balance weights"),
    "sandwich": (
        Train,
        SUPERNET
        + """--sandwich.sampling '{"name": "attentive", "samples": 1000}' --log-conflicts 2 """
        + "--sandwich.distillation alpha_divergence --sgd.clip-norm 1",
    ),
    "cell": (Retrain, RETRAIN),
    "cell of nasbench201": (Retrain, RETRAIN + "--genotype " + CELL),
    "recurrent cell": (Retrain, TEXT + LANGUAGE + "--language.bptt 5 --batch-size 60"),
    "search": (Search, "--space nasbench201 --cells 1 --channels 4 --batch-size 128 --evaluate-images 64"),
    "search of text": (Search, TEXT + "--space recurrent --text.hidden 4 --text.bptt 4 --batch-size 60"),
}


@pytest.mark.parametrize("name", RESUMED)
def test_a_training_that_is_stopped_and_resumed(
    name: str, tiny_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after its first step; the second process does the rest of the epoch and what ends it."""
    command, flags = RESUMED[name]
    words = [*shlex.split(flags), "--epochs", "1", "--out", str(tmp_path / "run")]
    words += ["--space", str(tiny_yaml)] if command is Train else []
    with watched(monkeypatch) as gpu:
        with monkeypatch.context() as patch:
            patch.setattr(Saving, "time_is_over", lambda self: True)
            run(command, *words, status=130)
        run(command, *words, "--resume")
    check(gpu)
    assert (tmp_path / "run" / "DONE").exists()
