"""The running average has the weights of torch's AveragedModel, bit for bit, in a few operations."""

from typing import Any

import pytest
import torch
from counting import count_operations
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from engine.optim import RunningAverage


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2))


def learn(net: nn.Module) -> None:
    """Weights and statistics move, and BatchNorm counts a batch."""
    net(torch.randn(2, 3, 8, 8))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter))


def same(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("decay", [0.9, None])
def test_same_bits_as_torch(decay: float | None) -> None:
    net = network()
    ours = RunningAverage(net, decay)
    average: Any = None if decay is None else get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    theirs = AveragedModel(net, multi_avg_fn=average)
    for _ in range(4):
        assert same(ours.network, theirs.module)
        learn(net)
        ours.update()
        theirs.update_parameters(net)
    assert same(ours.network, theirs.module)
    assert not same(ours.network, net)
    assert int(ours.network[1].num_batches_tracked) == 4, "buffers are those of the network"  # type: ignore[index]


def test_an_update_is_one_operation_however_many_tensors() -> None:
    net = network()
    average = RunningAverage(net, 0.9)
    average.update()
    assert count_operations(average.update) == 1


def test_continues_from_a_checkpoint() -> None:
    net = network()
    whole = RunningAverage(net, 0.9)
    learn(net)
    whole.update()
    resumed = RunningAverage(net, 0.9)
    resumed.load_state_dict(whole.state_dict())
    learn(net)
    whole.update()
    resumed.update()
    assert same(whole.network, resumed.network)
