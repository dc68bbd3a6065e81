"""The retrain command: learns, resumes bit for bit in one process and in two, stops at NaN, and says what
comes next."""

import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.checkpoint import load_weights
from engine.command.cli import parse
from engine.compute.distributed import ALONE, Ranks, join, join_batch_norms_2d
from engine.compute.gradients import GradientAverage
from engine.data.folder import ImageFolder
from engine.data.sources import load_data
from engine.errors import UserError
from engine.optim import learning_rate
from engine.run import Run, read_lines, read_yaml
from oneshot.networks.final import FinalNetwork
from oneshot.retrain import Retrain, Retraining
from oneshot.spaces.read_genotype import find_genotype
from oneshot.trained import build_network, network_model

TINY = (
    *("--network.cells", "3", "--network.channels", "4"),
    *("--epochs", "2", "--device", "cpu", "--batch-size", "64"),
)
CONFIGS = Path(__file__).parents[2] / "configs" / "oneshot"


def retrain(out: Path, *flags: str) -> int:
    return parse(Retrain, [*TINY, "--out", str(out), *flags]).execute()


def same_weights(a: Path, b: Path) -> bool:
    first, second = load_weights(a / "weights.safetensors"), load_weights(b / "weights.safetensors")
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.slow
def test_learns_digits_and_says_what_comes_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert retrain(tmp_path / "run", "--epochs", "8") == 0
    said = capsys.readouterr().out
    assert (
        "genotype DARTS_V2: 3 cells, 4 channels" in said
        and "on validation images" in said
        and "on test images" in said
    )
    assert said.splitlines()[-1] == f"next: python -m export.onnx --run {tmp_path / 'run'}"
    assert "; balanced " in said and "; worst: " in said
    written = {path.name for path in (tmp_path / "run" / "confusion").iterdir()}
    assert written == {"val.png", "val.csv", "test.png", "test.csv"}
    points = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert points[-1]["test_accuracy"] > 0.5, "ten classes: chance is 0.1"
    assert {"loss", "auxiliary_loss", "lr"} <= points[0].keys()
    assert not any(
        name.startswith("auxiliary") for name in load_weights(tmp_path / "run" / "weights.safetensors")
    )


@pytest.mark.slow
@pytest.mark.parametrize("stop_after", [11, 14])  # at an epoch's end (11 steps each), in the middle
def test_resume_is_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int) -> None:
    flags = ("--data.mixup", "0.2", "--drop-path", "0.3")
    assert retrain(tmp_path / "whole", *flags) == 0
    original = Retraining.update

    def update(self: Retraining, x: Tensor, y: Tensor) -> None:
        original(self, x, y)
        if self.step == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Retraining, "update", update)
    assert retrain(tmp_path / "parts", *flags) == 130
    assert not (tmp_path / "parts" / "DONE").exists()
    assert retrain(tmp_path / "parts", *flags, "--resume") == 0
    assert same_weights(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
def test_what_a_kill_before_the_first_checkpoint_logged_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: Retraining) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Retraining, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            retrain(tmp_path / "run", "--epochs", "1")
    assert retrain(tmp_path / "run", "--epochs", "1", "--resume") == 0
    steps = [point["step"] for point in read_lines(tmp_path / "run" / "metrics.jsonl") if "loss" in point]
    assert steps == [10, 11]


@pytest.mark.slow
def test_the_configuration_of_a_run_replays_it(tmp_path: Path) -> None:
    genotype = tmp_path / "genotype.json"
    genotype.write_text(find_genotype("PDARTS").model_dump_json())
    assert retrain(tmp_path / "run", "--genotype", str(genotype), "--epochs", "1") == 0
    genotype.unlink()
    again = parse(
        Retrain, ["--config", str(tmp_path / "run" / "config.yaml"), "--out", str(tmp_path / "again")]
    )
    assert again.execute() == 0
    assert same_weights(tmp_path / "run", tmp_path / "again")


def test_a_loss_that_is_not_finite_names_its_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Retraining.update

    def update(self: Retraining, x: Tensor, y: Tensor) -> None:
        original(self, x * math.nan if self.step == 13 else x, y)

    monkeypatch.setattr(Retraining, "update", update)
    with pytest.raises(
        UserError, match=r"not finite at step 13 \(epoch 2\); start again with a lower --sgd.lr"
    ):
        retrain(tmp_path / "run")
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["step"] == 11


def test_mistakes_leave_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for flags in (
        ("--genotype", "DARTS_V9"),
        ("--genotype", "DARTS_V2_recurrent"),
        ("--config", "oneshot/nothing"),
    ):
        with pytest.raises(UserError):
            retrain(tmp_path / "run", *flags)
    assert not (tmp_path / "run").exists()
    assert retrain(tmp_path / "run", "--epochs", "1") == 0
    # What is wrong without the images is said before they are read.
    monkeypatch.setattr(Retrain, "load_images", None)
    for flags, said in (
        (("--resume", "--genotype", "SNAS"), "was started with genotype = DARTS_V2, not SNAS"),
        (("--resume", "--seed", "1"), "was started with seed = 0, not 1"),
        ((), "already holds a finished run"),
    ):
        with pytest.raises(UserError, match=said):
            retrain(tmp_path / "run", "--epochs", "1", *flags)
    assert retrain(tmp_path / "run", "--epochs", "1", "--resume") == 0, "it is finished"


def test_a_step_is_the_published_one(tmp_path: Path) -> None:
    """By hand: smoothed labels, 0.4 of the auxiliary loss, decay of everything, one norm for all gradients,
    no Nesterov."""
    config = parse(
        Retrain,
        [
            *TINY,
            "--label-smoothing",
            "0.1",
            "--drop-path",
            "0",
            "--sgd.clip-norm",
            "0.5",
            "--sgd.weight-decay",
            "0.01",
        ],
    )
    data = load_data(config.data, torch.device("cpu"), 0)
    model = network_model(find_genotype("DARTS_V2"), config.network, data)
    torch.manual_seed(0)
    network = build_network(model, auxiliary=True)
    plain = build_network(model, auxiliary=True)
    plain.load_state_dict(network.state_dict())
    training = Retraining(config, Run(tmp_path), network, data, ALONE, model)
    momentum = [torch.zeros_like(p) for p in plain.parameters()]
    for step, (x, y) in zip(range(2), data.train_batches(64, 0), strict=False):
        training.update(x, y)
        logits, auxiliary = plain(x)
        target = F.one_hot(y, 10) * 0.9 + 0.01
        loss, second = (-(target * o.log_softmax(1)).sum(1).mean() for o in (logits, auxiliary))
        gradients = torch.autograd.grad(loss + 0.4 * second, list(plain.parameters()))
        norm = torch.sqrt(sum((g**2).sum() for g in gradients))
        assert norm > 0.5
        rate = learning_rate(config.sgd, step, 22, 0)
        with torch.no_grad():
            for p, g, m in zip(plain.parameters(), gradients, momentum, strict=True):
                m.mul_(0.9).add_(g * 0.5 / norm + 0.01 * p)
                p -= rate * m
    assert float(training.pending[1][1]) == pytest.approx(float(second.detach()), rel=1e-5)
    for (name, got), wanted in zip(network.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.slow
def test_drop_path_rises_with_the_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    original = FinalNetwork.forward

    def forward(
        self: FinalNetwork, x: Tensor, drop: float = 0.0, generator: torch.Generator | None = None
    ) -> Any:
        if self.training:
            seen.add(drop)
        return original(self, x, drop, generator)

    monkeypatch.setattr(FinalNetwork, "forward", forward)
    assert retrain(tmp_path / "run", "--drop-path", "0.2") == 0
    assert seen == {0.0, 0.1}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("retrain*.yaml")), ids=lambda path: path.stem)
def test_recipes_are_valid(path: Path) -> None:
    recipe = parse(Retrain, ["--config", f"oneshot/{path.stem}"])
    if path.stem in ("retrain_cifar", "retrain_imagenet"):
        assert (
            recipe.sgd.clip_norm == 5
            and recipe.sgd.clip_value is None
            and recipe.sgd.decay_all
            and not recipe.sgd.nesterov
        )
    if path.stem == "retrain_imagenet":
        assert isinstance(recipe.data, ImageFolder) and recipe.data.jitter == (0.4, 0.4, 0.4, 0.2)
        assert learning_rate(recipe.sgd, 3 * 100, 250 * 100, 0) == pytest.approx(0.1 * 0.97**3, rel=1e-6)


def _retrain(words: list[str], stop_after: int) -> int:
    original = Retraining.update

    def update(self: Retraining, x: Tensor, y: Tensor) -> None:
        original(self, x, y)
        if self.step == stop_after and self.ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    Retraining.update = update  # type: ignore[method-assign]
    try:
        return parse(Retrain, words).execute()
    finally:
        Retraining.update = original  # type: ignore[method-assign]


@pytest.mark.slow
def test_two_processes_resume_bit_for_bit(pair: Callable[..., list[Any]], tmp_path: Path) -> None:
    words = [*TINY, "--sync-bn"]
    assert pair(_retrain, [*words, "--out", str(tmp_path / "whole")], 0) == [0, 0]
    parts = [*words, "--out", str(tmp_path / "parts")]
    assert pair(_retrain, parts, 15) == [130, 130], "a signal to one of them stops both"
    with pytest.raises(UserError, match="torchrun --nproc-per-node 2 -m oneshot"):
        parse(Retrain, [*parts, "--resume"]).execute()
    assert pair(_retrain, [*parts, "--resume"], 0) == [0, 0]
    assert same_weights(tmp_path / "whole", tmp_path / "parts")
    assert read_yaml(tmp_path / "whole" / "config.yaml")["ranks"] == 2


def _learned(ranks: Ranks) -> dict[str, np.ndarray]:
    """Gradients and statistics after one pass on this rank's share of 8 images."""
    torch.manual_seed(0)
    net = FinalNetwork(find_genotype("DARTS_V2"), 4, 3, 10, 1).double()
    if ranks.size > 1:
        join_batch_norms_2d(net)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 1, 8, 8, generator=generator, dtype=torch.double)
    average, share = GradientAverage(net.parameters(), ranks), ranks.share(8)
    loss = F.cross_entropy(net(x[share]), torch.arange(8)[share])
    average.last_backward(loss)
    average.finish(loss.detach()[None])
    found = {name: p.grad.numpy() for name, p in net.named_parameters() if p.grad is not None}
    return found | {name: buffer.numpy() for name, buffer in net.named_buffers()}


def _learned_by_two() -> dict[str, np.ndarray]:
    with join("cpu") as (ranks, _):
        return _learned(ranks)


@pytest.mark.slow
def test_joined_statistics_are_those_of_one_process(pair: Callable[..., list[Any]]) -> None:
    one = _learned(ALONE)
    for found in pair(_learned_by_two):
        assert found.keys() == one.keys()
        for name, wanted in one.items():
            np.testing.assert_allclose(found[name], wanted, rtol=1e-7, atol=1e-9, err_msg=name)


def test_compiled_parts_do_not_wait_for_others() -> None:
    command = parse(Retrain, [*TINY, "--sync-bn", "--compile"])
    with pytest.raises(UserError, match="compiled parts cannot wait"):
        command.train(Ranks(0, 2), torch.device("cpu"))
