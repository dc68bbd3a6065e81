"""Whole commands on a pretended GPU: they end well, mix no devices, and their steps do not wait.

Every training is watched where its loop takes a batch and makes a step, from the second step on: the first
one fills caches. What comes between, such as an evaluation or a checkpoint, may wait, since numbers are read
there.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pretended_gpu import Gpu, pretended_gpu

from engine.command.cli import Command, parse
from engine.loop import EpochLoop
from engine.run import read_json, read_lines
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
    @functools.wraps(update)
    def step(loop: EpochLoop, *batch: Any) -> None:
        if loop.batches_done == 0:
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


def run(command: type[Command], *flags: str) -> None:
    """A command that ends well."""
    assert parse(command, [*flags, "--device", "cuda"]).execute() == 0


def check(gpu: Gpu) -> None:
    assert gpu.ops
    assert set(gpu.waits()) <= WAITS


@pytest.fixture(scope="module")
def supernet_run(tiny_yaml: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A supernet that was trained in three phases on the pretended GPU."""
    out = tmp_path_factory.mktemp("device") / "supernet"
    flags = ["--space", str(tiny_yaml), "--phases", PHASES, "--batch-size", "250", "--out", str(out)]
    flags += ["--ema", "0.9", "--data.mixup", "0.2", "--data.cutout", "2", "--evaluate-every", "3"]
    with pytest.MonkeyPatch.context() as patch, watched(patch) as gpu:
        run(Train, *flags, "--calibration-images", "128")
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


@pytest.mark.parametrize(
    "flags",
    [
        ["--arch", "smallest", "--data.balance", "weights"],
        [
            *("--sandwich.sampling", '{"name": "attentive", "samples": 1000}', "--log-conflicts", "2"),
            *("--sandwich.distillation", "alpha_divergence", "--sgd.clip-norm", "1"),
        ],
    ],
    ids=["one architecture", "sandwich"],
)
def test_a_supernet_resumes(
    flags: list[str], tiny_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--space", str(tiny_yaml), "--batch-size", "250", "--out", str(tmp_path / "run"), *flags]
    words += ["--evaluate-every", "5", "--calibration-images", "128", "--ema", "0.9"]
    with watched(monkeypatch) as gpu:
        run(Train, *words, "--epochs", "1")
        run(Train, *words, "--epochs", "2", "--resume")
    check(gpu)


IMAGES = ["--network.cells", "3", "--network.channels", "4", "--batch-size", "250", "--evaluate-every", "5"]
TEXT = ["--genotype", "DARTS_V2_recurrent", "--data", "grammar", "--data.sentences", "200"]


@pytest.mark.parametrize(
    ("flags", "epochs"),
    [
        (IMAGES, "--epochs"),
        (
            [
                *IMAGES,
                "--genotype",
                "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|skip_connect~0|none~1|avg_pool_3x3~2|",
            ],
            "--epochs",
        ),
        ([*TEXT, "--language.hidden", "6", "--language.bptt", "5"], "--language.epochs"),
    ],
    ids=["darts", "nasbench201", "text"],
)
def test_a_retraining_resumes(
    flags: list[str], epochs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*flags, "--out", str(tmp_path / "run")]
    with watched(monkeypatch) as gpu:
        run(Retrain, *words, epochs, "1")
        if epochs == "--epochs":
            run(Retrain, *words, epochs, "2", "--resume")
    check(gpu)


@pytest.mark.parametrize(
    "flags",
    [
        [
            "--space",
            "nasbench201",
            "--watch-every",
            "1",
            "--cells",
            "1",
            "--channels",
            "4",
            "--batch-size",
            "128",
        ],
        [
            "--space",
            "recurrent",
            "--data.sentences",
            "200",
            "--text.hidden",
            "4",
            "--text.bptt",
            "5",
            "--batch-size",
            "8",
        ],
    ],
    ids=["images", "text"],
)
def test_a_search(flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with watched(monkeypatch) as gpu:
        run(Search, *flags, "--epochs", "1", "--out", str(tmp_path / "run"))
    check(gpu)
    assert (tmp_path / "run" / "genotype.json").exists()
