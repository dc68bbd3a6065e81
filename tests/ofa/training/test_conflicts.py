"""Gradients of a step, each network's apart: their cosines are right, and measuring them changes nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from supernets import filled

from engine.checkpoint import load_weights
from engine.run import read_lines
from ofa.space.arch import largest, smallest
from ofa.space.space import Space
from ofa.training.conflicts import GradientParts
from ofa.training.losses import SoftCrossEntropy, distil
from ofa.training.sandwich import Sandwich, sandwich_step


def test_measuring_changes_no_gradient_and_the_cosines_are_of_single_networks(tiny: Space) -> None:
    net, config = filled(tiny), Sandwich(random=0, dropout=0, drop_connect=0)
    x, y = torch.randn(8, 3, 12, 12), torch.arange(8) % 5
    gradients = []
    for parts in (None, GradientParts(net)):
        net.zero_grad()
        sandwich_step(net, x, y, 3, config, passes=parts)
        gradients.append([p.grad for p in net.parameters()])
    assert parts is not None
    for plain, measured in zip(*gradients, strict=True):
        assert plain is measured is None or torch.equal(plain, measured)
    # The smallest alone, learning from the same teacher; what remains of the sum is the largest's.
    net.zero_grad()
    teacher = net(x, largest(tiny)).detach()
    distil(SoftCrossEntropy(), net(x, smallest(tiny)), teacher).backward()
    ours, rest = [], []
    for p, total in zip(net.parameters(), gradients[0], strict=True):
        own = torch.zeros_like(p) if p.grad is None else p.grad
        ours.append(own.flatten())
        rest.append((torch.zeros_like(p) if total is None else total - own).flatten())
    wanted = torch.cosine_similarity(torch.cat(ours), torch.cat(rest), dim=0)
    assert parts.cosines() == {"cosine_smallest_largest": pytest.approx(float(wanted), abs=1e-5)}


@pytest.mark.slow
def test_a_run_logs_cosines_and_learns_the_same(
    train: Callable[..., int], trained_run: Path, tmp_path: Path
) -> None:
    assert train(tmp_path / "run", "--log-conflicts", "10") == 0
    found = [p for p in read_lines(tmp_path / "run" / "metrics.jsonl") if "cosine_random_largest" in p]
    assert [p["step"] for p in found] == [1, 11, 21, 31]
    assert all(-1 <= p[name] <= 1 for p in found for name in p if name.startswith("cosine"))
    first, second = (load_weights(run / "weights.safetensors") for run in (trained_run, tmp_path / "run"))
    assert all(torch.equal(first[name], second[name]) for name in first)
