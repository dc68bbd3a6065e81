"""Two real gloo processes: they agree, average, normalise and divide a batch as one process would."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from engine.command import launch
from engine.command.cli import Command, main
from engine.compute.distributed import ALONE, Ranks, batch_norm, join, join_batch_norms_2d
from engine.compute.gradients import GradientAverage
from engine.data.digits import Digits
from engine.data.folder import ImageFolder
from engine.data.sources import load_data
from engine.errors import UserError
from engine.seed import derive

Run = Callable[..., list[Any]]
CPU = torch.device("cpu")


def test_a_rank_has_its_share_of_a_batch_and_a_seed_of_its_own() -> None:
    assert [Ranks(rank, 3).share(12) for rank in range(3)] == [slice(0, 4), slice(4, 8), slice(8, 12)]
    assert [Ranks(0, 3).seed(7), Ranks(2, 3).seed(7), ALONE.seed(7)] == [7, derive(7, "rank", 2), 7]


@pytest.mark.parametrize(("batch", "near"), [(64, 63), (65, 66), (3, 6)])
def test_a_batch_that_cannot_be_divided_names_one_that_can(batch: int, near: int) -> None:
    with pytest.raises(UserError, match=rf"{batch} images cannot be divided among 3 processes.*use {near}\."):
        Ranks(0, 3).share(batch)


def test_alone_nothing_happens() -> None:
    weight = nn.Parameter(torch.ones(3))
    losses = torch.ones(2)
    average = GradientAverage([weight], ALONE)
    assert average.finish(losses) is losses
    assert weight.grad is None
    assert (ALONE.any(True), ALONE.any(False), ALONE.total([1.5])) == (True, False, [1.5])
    with join("cpu") as (ranks, device):
        assert (ranks, device) == (ALONE, CPU)
        assert not torch.distributed.is_initialized()


def _weights(count: int) -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(2, 3, 2, 2).to(memory_format=torch.channels_last)) for _ in range(count)]


def _averages(bucket_bytes: int) -> tuple[list[np.ndarray | None], list[float], list[bool], list[float]]:
    with join("cpu") as (ranks, _):
        both, one, none = _weights(3)
        average = GradientAverage([both, one, none], ranks, bucket_bytes)
        arange = torch.arange(24.0).reshape(2, 3, 2, 2)
        for _ in range(2):  # the second step meets the buffers of the first one
            for weight in (both, one, none):
                weight.grad = None
            loss = (both * arange * (1 + ranks.rank)).sum()
            if ranks.rank:
                average.backward(one.sum() * 4)
            average.last_backward(loss)
            losses = average.finish(torch.tensor([1.0, 2.0]) * (1 + 2 * ranks.rank))
        assert both.grad is not None
        assert both.grad.stride() == both.stride(), "another layout would slow the optimiser down"
        gradients = [None if p.grad is None else p.grad.numpy() for p in (both, one, none)]
        return (
            gradients,
            losses.tolist(),
            [ranks.any(ranks.rank == 1), ranks.any(False)],
            ranks.total([ranks.rank, 0.25]),
        )


@pytest.mark.parametrize("bucket_bytes", [1, 1000])
def test_gradients_are_averaged_and_none_is_zero_unless_nobody_has_one(pair: Run, bucket_bytes: int) -> None:
    for (both, one, none), losses, flags, total in pair(_averages, bucket_bytes):
        np.testing.assert_array_equal(both, np.arange(24.0).reshape(2, 3, 2, 2) * 1.5)
        np.testing.assert_array_equal(one, np.full((2, 3, 2, 2), 2.0))
        assert none is None
        assert (losses, flags, total) == ([2.0, 4.0], [True, False], [1.0, 0.5])


def _sent_in_the_last_pass() -> tuple[list[int], list[np.ndarray]]:
    """After which gradient each bucket was sent; and the gradients, one of which a layer writes by itself."""
    with join("cpu") as (ranks, _):
        first, second, third, _ = weights = _weights(4)
        average = GradientAverage(weights, ranks, bucket_bytes=1)
        seen = []
        for parameter in weights:
            parameter.register_post_accumulate_grad_hook(lambda _: seen.append(len(average.under_way)))
        x = torch.ones(2, 3, 2, 2, requires_grad=True)
        average.backward((first * third).sum() + (second + third).sum())
        seen.clear()
        # Backward comes to the last weight first.
        y = ((x + first) * 2 + second) * 3 + third
        x.register_hook(lambda grad: third.grad.add_(1) if ranks.rank == 1 else None)
        average.last_backward((y * (1 + ranks.rank)).sum())
        average.finish(torch.ones(1))
        gradients = [p.grad.numpy() for p in weights if p.grad is not None]
        return seen, gradients


def test_buckets_travel_while_the_last_pass_computes(pair: Run) -> None:
    (sent, gradients), (_, same) = pair(_sent_in_the_last_pass)
    # At the first gradient the unused weight's bucket waits for nothing; then one more goes with each.
    assert sent == sorted(sent) and sent[0] < sent[-1] and sent[-1] >= 2
    wanted = [9.0, 1 + 4.5, 1 + 1.5 + 0.5]  # the one that rank 1 wrote late counts by half
    for gradient, other, value in zip(gradients, same, wanted, strict=True):
        np.testing.assert_array_equal(gradient, other)
        np.testing.assert_array_equal(gradient, np.full((2, 3, 2, 2), value))


def _normalised(
    x: Tensor, grad: Tensor, norm: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> list[np.ndarray]:
    x.requires_grad_()
    weight, bias = (nn.Parameter(torch.linspace(a, 2, x.shape[1], dtype=torch.float64)) for a in (0.5, -1))
    y = norm(x, weight, bias)
    y.backward(grad)
    return [t.detach().numpy() for t in (y, x.grad, weight.grad, bias.grad) if t is not None]


def _example() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 5, 4, 4, generator=generator, dtype=torch.float64)
    x[3:] = 3 * x[3:] + 100  # ranks whose images differ, far from zero
    return x, torch.randn(x.shape, generator=generator, dtype=torch.float64)


def _joined_batch_norm() -> list[np.ndarray]:
    with join("cpu") as (ranks, _):
        x, grad = (t[ranks.share(6)].clone() for t in _example())
        return _normalised(x, grad, lambda *args: batch_norm(*args, 1e-5))


def _joined_module() -> list[np.ndarray]:
    with join("cpu") as (ranks, _):
        net = nn.Sequential(nn.BatchNorm2d(5)).double()
        join_batch_norms_2d(net)
        y = net(_example()[0][ranks.share(6)])
        return [y.detach().numpy(), *(tensor.numpy() for tensor in net.buffers())]


def test_joined_module_keeps_the_running_statistics_of_one_process(pair: Run) -> None:
    whole = nn.BatchNorm2d(5).double()
    y = whole(_example()[0]).detach().numpy()
    (first, mean, var, _), (second, *_) = pair(_joined_module)
    np.testing.assert_allclose(np.concatenate([first, second]), y, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(mean, whole.running_mean.numpy(), rtol=1e-9)
    np.testing.assert_allclose(var, whole.running_var.numpy(), rtol=1e-9)


def _joined_batch_norm_in_half() -> list[float]:
    with join("cpu") as (ranks, _):
        x, grad = (t[ranks.share(6)].float() for t in _example())
        x = x - 50
        weight, bias = torch.ones(5), torch.zeros(5)
        found = []
        for dtype in (torch.float32, torch.bfloat16):
            images = x.detach().to(dtype).requires_grad_()
            y = batch_norm(images, weight, bias, 1e-5)
            y.backward(grad.to(dtype))
            assert images.grad is not None and images.grad.dtype == y.dtype == dtype
            found.append((y.detach().float(), images.grad.float()))
        return [float((a - b).abs().max() / a.abs().max()) for a, b in zip(*found, strict=True)]


def test_joined_batch_norm_is_that_of_one_process(pair: Run) -> None:
    whole = _normalised(*_example(), lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True))
    y, grad_x, *grads = zip(*pair(_joined_batch_norm), strict=True)
    for found, wanted in zip((y, grad_x), whole[:2], strict=True):
        np.testing.assert_allclose(np.concatenate(found), wanted, rtol=1e-9, atol=1e-9)
    for found, wanted in zip(grads, whole[2:], strict=True):
        np.testing.assert_allclose(found[0] + found[1], wanted, rtol=1e-9)


def test_joined_batch_norm_takes_half_precision(pair: Run) -> None:
    for errors in pair(_joined_batch_norm_in_half):
        assert max(errors) < 0.02


def test_shares_join_to_the_batch_of_one_process(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split, label in ((s, c) for s in ("train", "test") for c in "ab"):
        (tmp_path / split / label).mkdir(parents=True)
        for i in range(8):
            Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(
                tmp_path / split / label / f"{i}.png"
            )
    folder = ImageFolder(name="imagefolder", path=tmp_path, size=16, workers=0, policy="randaugment")
    for config in (Digits(cutout=3), folder):
        data = load_data(config, CPU, 0)
        for whole, *parts in zip(
            *(data.train_batches(4, 1, 1, r) for r in (ALONE, Ranks(0, 2), Ranks(1, 2))), strict=True
        ):
            for tensor, *shares in zip(whole, *parts, strict=True):
                assert torch.equal(tensor, torch.cat(shares))


def test_ranks_draw_their_own_mixup() -> None:
    data = load_data(Digits(mixup=0.5), CPU, 0)
    shares = [next(data.train_batches(8, 0, 0, Ranks(rank, 2)))[1].amax(1) for rank in range(2)]
    assert not torch.equal(*shares)


def _device(name: str) -> None:
    with join(name):
        pass


def test_one_device_is_not_for_two(pair: Run) -> None:
    for error in pair(_device, "cuda:1"):
        assert isinstance(error, UserError) and "2 processes need their own" in str(error)


def _leave_or_ask() -> bool:
    with join("cpu") as (ranks, _):
        if ranks.rank == 1:
            raise KeyError
        return ranks.any(False)


def test_a_rank_that_is_gone_is_one_sentence(pair: Run) -> None:
    error, _ = pair(_leave_or_ask)
    assert isinstance(error, UserError)
    assert "ended or cannot be reached (" in str(error) and ".cc" not in str(error)


class Serial(Command):
    """A command that is one process."""

    def execute(self) -> int:
        print("ran")
        return 0


def test_only_commands_that_can_are_started_many_times(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match="2"):
        main(Serial, [])
    assert "one process; start it with python -m" in capfd.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(SystemExit, match="0"):
        main(Serial, [])
    assert capfd.readouterr().out == "ran\n"


def test_other_ranks_print_nothing_and_complain_late(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch, "POLITE_SECONDS", 0.0)
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("RANK", "1"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    with launch.only_the_first_prints():
        print("twice")
    before = signal.getsignal(signal.SIGINT)
    launch.complain("Wrong.")
    signal.signal(signal.SIGINT, before)
    assert capfd.readouterr() == ("", "error on rank 1: Wrong.\n")
