"""ofa.train by two real processes.

Both have the same weights, those of one process where they can be, and the run is whole after any end.
"""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.blocks.elastic import join_batch_norms
from engine.checkpoint import load_weights
from engine.command.cli import parse
from engine.compute.distributed import ALONE, Ranks, join
from engine.compute.gradients import GradientAverage
from engine.data.digits import Digits
from engine.data.sources import load_data
from engine.errors import UserError
from engine.run import read_json, read_lines
from ofa.space.space import Space
from ofa.supernet import Supernet
from ofa.train import Train
from ofa.training.sandwich import Sandwich, Seeds, sandwich_step
from ofa.training.trainer import Trainer

Run = Callable[..., list[Any]]
Weights = dict[str, np.ndarray]
FLAGS = (
    "--epochs",
    "8",
    "--evaluate-every",
    "100",
    "--device",
    "cpu",
    "--ema",
    "0.9",
    "--sandwich.dropout",
    "0.1",
)


def _steps(ranks: Ranks, space: Space, norm: str, same: bool) -> Weights:
    """The weights, in double precision, after three steps of SGD on global batches of 16 digits."""
    torch.manual_seed(0)
    net = Supernet(space, 10, 1).double().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for name, parameter in net.named_parameters():
        if name.endswith("project.bn.weight"):
            torch.nn.init.ones_(parameter)  # as trained: at zero the residual branches would not count
    net.train(norm != "frozen")
    if norm == "joined":
        join_batch_norms(net)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=1e-3)
    average = GradientAverage(net.parameters(), ranks, bucket_bytes=10_000)
    assert len(average.buckets) > 4  # gradients travel while the last pass is under way
    batches = load_data(Digits(), torch.device("cpu"), 0).train_batches(16, 0, ranks=ranks)
    for step, (x, y) in zip(range(3), batches, strict=False):
        optimizer.zero_grad()
        seed = 0 if same else ranks.seed(0)
        config = Sandwich(dropout=0, drop_connect=0)
        losses = sandwich_step(net, x.double(), y, step, config, seeds=Seeds(seed, seed), passes=average)
        losses = average.finish(losses)
        optimizer.step()
    return {name: p.detach().numpy() for name, p in net.named_parameters()} | {"losses": losses.numpy()}


def _steps_of_two(space: Space, norm: str, same: bool) -> Weights:
    with join("cpu") as (ranks, _):
        return _steps(ranks, space, "joined" if norm == "batch" and same else norm, same)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_two_ranks_with_the_same_subnets_are_one_process(pair: Run, tiny: Space, norm: str) -> None:
    one = _steps(ALONE, tiny, norm, True)
    first, second = pair(_steps_of_two, tiny, norm, True)
    for name, wanted in one.items():
        assert np.array_equal(first[name], second[name]), "both ranks hold the same bits"
        np.testing.assert_allclose(first[name], wanted, rtol=1e-5, atol=1e-6, err_msg=name)


def test_ranks_with_their_own_subnets_and_statistics_hold_the_same_weights(pair: Run, tiny: Space) -> None:
    one = _steps(ALONE, tiny, "batch", False)
    first, second = pair(_steps_of_two, tiny, "batch", False)
    assert all(np.array_equal(first[name], second[name]) for name in one)
    assert not np.allclose(first["classifier.weight"], one["classifier.weight"], rtol=1e-4)


def _train(words: list[str]) -> int:
    return parse(Train, words).execute()


@pytest.mark.slow
def test_joined_training_is_that_of_one_process(pair: Run, tiny_yaml: Path, tmp_path: Path) -> None:
    """Through the flags: without --same-subnets or --sync-bn the weights are far apart."""
    words = [
        "--space",
        str(tiny_yaml),
        "--epochs",
        "1",
        "--batch-size",
        "32",
        "--device",
        "cpu",
        "--sgd.lr",
        "0.05",
    ]
    words += ["--sandwich.dropout", "0", "--sandwich.drop-connect", "0", "--evaluate-random", "0"]
    assert _train([*words, "--out", str(tmp_path / "one")]) == 0
    assert pair(_train, [*words, "--same-subnets", "--sync-bn", "--out", str(tmp_path / "two")]) == [0, 0]
    assert pair(_train, [*words, "--same-subnets", "--out", str(tmp_path / "apart")]) == [0, 0]
    one, two, apart = (
        load_weights(tmp_path / name / "weights.safetensors") for name in ("one", "two", "apart")
    )

    def distance(other: dict[str, Tensor]) -> float:
        return math.sqrt(sum(float((other[name] - one[name]).square().sum()) for name in one))

    assert distance(two) < 0.02 * distance(apart)


@pytest.mark.slow
def test_two_ranks_shrink_alike(pair: Run, tiny_yaml: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "shrink.yaml"
    phases = [
        {"name": "a", "epochs": 1, "lr": 0.1, "subnets": 0},
        {"name": "b", "epochs": 1, "lr": 0.1, "subnets": 2},
    ]
    recipe.write_text(
        json.dumps({"space": str(tiny_yaml), "phases": phases, "device": "cpu", "evaluate_random": 0})
    )
    assert pair(_train, ["--config", str(recipe), "--out", str(tmp_path / "run")]) == [0, 0]
    assert (tmp_path / "run" / "teacher.safetensors").exists()
    with pytest.raises(UserError, match="is trained by 2 processes, not 1"):
        _train(["--config", str(recipe), "--out", str(tmp_path / "run"), "--resume"])


def _train_broken(words: list[str]) -> int:
    original = Trainer.update

    def update(self: Trainer, x: Tensor, y: Tensor) -> None:
        original(self, x * math.nan if (self.ranks.rank, self.step) == (1, 2) else x, y)

    Trainer.update = update  # type: ignore[method-assign]
    try:
        return _train(words)
    finally:
        Trainer.update = original  # type: ignore[method-assign]


@pytest.mark.slow
def test_all_ranks_stop_at_a_loss_that_is_not_finite(pair: Run, tiny_yaml: Path, tmp_path: Path) -> None:
    for error in pair(_train_broken, ["--space", str(tiny_yaml), "--out", str(tmp_path / "run"), *FLAGS]):
        assert isinstance(error, UserError) and "loss is not finite at step 2 (epoch 1)" in str(error)


def test_what_the_flags_must_agree_on(tmp_path: Path, tiny_yaml: Path) -> None:
    with pytest.raises(UserError, match="judge by predicted"):
        parse(Train, ["--same-subnets", "--sync-bn", "--sandwich.sampling.name", "attentive"])
    with pytest.raises(UserError, match="each process has its own; add --same-subnets"):
        parse(Train, ["--sync-bn"])
    with pytest.raises(
        UserError, match=r"trained by 2 processes, but 1 started; start it with torchrun --nproc-per-node 2"
    ):
        parse(Train, ["--ranks", "2", "--out", str(tmp_path / "run")]).execute()
    assert not (tmp_path / "run").exists()


def _torchrun(words: list[str], out: Path, event: Callable[[subprocess.Popen[str]], None]) -> str:
    """Run under torchrun, wait for a new checkpoint, let `event` happen; returns what was said to the end."""
    state = out / "state.pt"
    before = state.stat().st_mtime_ns if state.exists() else 0
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        # Seconds until it looks for dead processes: ours must speak before it sends SIGTERM to all of them.
        "--monitor-interval",
        "5",
        "-m",
        "ofa.train",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [*launcher, *words], stdout=pipe, stderr=subprocess.STDOUT, text=True, env=environment
    )
    deadline = time.monotonic() + 120
    while (
        process.poll() is None
        and time.monotonic() < deadline
        and (state.stat().st_mtime_ns if state.exists() else 0) == before
    ):
        time.sleep(0.02)
    event(process)
    said, _ = process.communicate(timeout=60)
    return said


def _ctrl_c(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)


def _kill_rank_1(process: subprocess.Popen[str]) -> None:
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (second,) = [pid for pid in workers if "\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_text()]
    os.kill(int(second), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")
def test_ctrl_c_a_killed_rank_and_resume_end_bit_for_bit(pair: Run, tiny_yaml: Path, tmp_path: Path) -> None:
    words = ["--space", str(tiny_yaml), *FLAGS]
    assert pair(_train, [*words, "--out", str(tmp_path / "whole")]) == [0, 0]
    out = tmp_path / "parts"
    words += ["--out", str(out)]

    said = _torchrun([*words, "--threads", "1"], out, _ctrl_c)
    assert (
        said.count("continue with the same command and --resume")
        == said.count("stopping after this step")
        == 1
    ), said
    stopped = torch.load(out / "state.pt", weights_only=True)["step"]
    assert 11 <= stopped < 88

    said = _torchrun([*words, "--resume"], out, _kill_rank_1)
    assert said.count("error: Another of the processes that work together ended or cannot be reached") == 1, (
        said
    )
    assert stopped < torch.load(out / "state.pt", weights_only=True)["step"] < 88

    with pytest.raises(UserError, match="is trained by 2 processes, not 1"):
        _train([*words, "--resume"])
    assert pair(_train, [*words, "--resume"]) == [0, 0]
    whole, parts = (load_weights(tmp_path / name / "weights.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    points = [
        [p for p in read_lines(tmp_path / name / "metrics.jsonl") if "arch" in p]
        for name in ("whole", "parts")
    ]
    assert points[0] == points[1] and len(points[0]) == 4
    seeds = read_json(out / "env.json")["rank_seeds"]
    assert seeds[0] == 0 and len(set(seeds)) == 2
