"""Progressive shrinking: what each phase opens, the step's loss, and resume in any phase."""

import os
import signal
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from supernets import filled

from engine.blocks.sizes import hidden_width
from engine.checkpoint import load_weights
from engine.command.cli import parse
from engine.data.augment import resize
from engine.data.sources import load_data
from engine.errors import UserError
from engine.run import Run as RunFolder
from engine.run import read_lines
from ofa.space.arch import largest, smallest
from ofa.space.space import Space, load_space
from ofa.subnet import extract
from ofa.supernet import Supernet
from ofa.train import Train
from ofa.trained import load_network
from ofa.training.losses import soft_cross_entropy
from ofa.training.phases import Phase, drawn_resolution, grows, phase_position, shrinking_step
from ofa.training.sampling import UniformSampler
from ofa.training.sandwich import Sandwich, Seeds
from ofa.training.trainer import Trainer

FULL = Phase(name="full", epochs=1, lr=0.1)
ONLY_LARGEST = Phase(name="largest", epochs=2, lr=0.1, subnets=0, kernel=1, depth=1, expand=1, width=1)


def test_a_phase_opens_the_largest_choices() -> None:
    space = load_space("ofa_mbv3")
    rng = np.random.default_rng(0)
    assert (
        ONLY_LARGEST.sample(space, rng, 224)
        == largest(space)
        == ONLY_LARGEST.smallest(space).model_copy(update={"resolution": 224})
    )
    depth = Phase(name="depth", epochs=1, lr=0.1, depth=2, expand=1)
    archs = [depth.sample(space, rng) for _ in range(300)]
    assert {d for arch in archs for d in arch.depth[1:]} == {3, 4}
    assert {e for arch in archs for e in arch.expand[1:]} == {6, 0}
    assert {k for arch in archs for k in arch.kernel[1:]} == {3, 5, 7, 0}
    assert len({arch.resolution for arch in archs}) == 25
    assert FULL.smallest(space) == smallest(space)
    shares = np.bincount([arch.depth[1] for arch in archs], minlength=5)[3:] / 300
    assert shares == pytest.approx([0.5, 0.5], abs=0.1)
    assert grows(depth, FULL, space)
    assert not grows(ONLY_LARGEST, depth, space)


def test_a_deep_stem_opens_with_width_and_depth() -> None:
    space = load_space("ofa_resnet50")
    archs = [
        Phase(name="d", epochs=1, lr=1, depth=2, width=1).sample(space, np.random.default_rng(i))
        for i in range(30)
    ]
    assert {arch.stem for arch in archs} == {(32, 0), (32, 1)}


def test_places_of_steps() -> None:
    phases = (ONLY_LARGEST, FULL)
    assert [tuple(phase_position(phases, 5, step)) for step in (0, 9, 10, 14, 15)] == [
        (0, 0, 10),
        (0, 0, 10),
        (1, 10, 15),
        (1, 10, 15),
        (1, 10, 15),
    ]


def test_the_step_is_label_loss_plus_distillation_at_one_resolution(
    tiny: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    net = Supernet(tiny, 5)
    x, y = torch.randn(6, 3, 12, 12), torch.arange(6) % 5
    phase = Phase(name="all", epochs=1, lr=0.1, subnets=3)
    config = Sandwich(dropout=0, drop_connect=0)
    teacher = extract(filled(tiny), largest(tiny)).train()
    seen = []
    original = Supernet.forward

    def spy(self: Supernet, images: torch.Tensor, arch: object, regularise: object = None) -> torch.Tensor:
        seen.append(arch)
        return original(self, images, arch, regularise)  # type: ignore[arg-type]

    monkeypatch.setattr(Supernet, "forward", spy)
    x = resize(x, drawn_resolution(tiny, 3, 8))
    losses = shrinking_step(net, teacher, x, y, 8, phase, config, Seeds(3, 3))
    gradients = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    archs = list(seen)
    assert len(archs) == 3
    assert {arch.resolution for arch in archs} == {x.shape[-1]}
    assert {drawn_resolution(tiny, 3, step) for step in range(20)} == set(tiny.resolution)
    net.zero_grad()
    with torch.no_grad():
        taught = teacher(x)
    wanted = []
    for arch in archs:
        logits = original(net, x, arch)
        loss = F.cross_entropy(logits, y, label_smoothing=0.1) + soft_cross_entropy(logits, taught)
        loss.backward()
        wanted.append(loss.detach())
    torch.testing.assert_close(losses, torch.stack(wanted))
    for ours, theirs in zip(gradients, [p.grad for p in net.parameters() if p.grad is not None], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def recipe(tiny_yaml: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    phases = [
        {
            "name": "largest",
            "epochs": 1,
            "lr": 0.2,
            "subnets": 0,
            "kernel": 1,
            "depth": 1,
            "expand": 1,
            "width": 1,
        },
        {"name": "depth", "epochs": 1, "lr": 0.05, "subnets": 1, "expand": 1, "width": 1},
        {"name": "expand", "epochs": 1, "lr": 0.05, "subnets": 2},
    ]
    path = tmp_path_factory.mktemp("recipes") / "shrink.yaml"
    values = {
        "space": str(tiny_yaml),
        "phases": phases,
        "evaluate_every": 1,
        "evaluate_random": 1,
        "device": "cpu",
        "ema": 0.9,
    }
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def uninterrupted(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "shrink"
    assert parse(Train, ["--config", str(recipe), "--out", str(out)]).execute() == 0
    return out


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Send the process a SIGTERM after `step` steps; returns what undoes it."""
    original = Trainer.update

    def update(self: Trainer, x: torch.Tensor, y: torch.Tensor) -> None:
        original(self, x, y)
        if self.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "update", update)
    return lambda: monkeypatch.setattr(Trainer, "update", original)


@pytest.mark.slow
@pytest.mark.parametrize("step", [4, 11, 15, 22, 30])
def test_resume_in_any_phase_is_bit_for_bit(
    step: int, recipe: Path, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    undo = stop_at(step, monkeypatch)
    assert parse(Train, ["--config", str(recipe), "--out", str(out)]).execute() == 130
    undo()
    assert parse(Train, ["--config", str(recipe), "--out", str(out), "--resume"]).execute() == 0
    first, second = (
        load_weights(uninterrupted / "weights.safetensors"),
        load_weights(out / "weights.safetensors"),
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    points = [
        [p for p in read_lines(path / "metrics.jsonl") if "val_accuracy" in p]
        for path in (uninterrupted, out)
    ]
    assert points[0] == points[1]


def test_phases_are_evaluated_in_what_they_opened(uninterrupted: Path) -> None:
    points = [p for p in read_lines(uninterrupted / "metrics.jsonl") if p.get("arch") == "smallest"]
    macs = [p["macs"] for p in points]
    assert macs[0] > macs[1] > macs[2]
    rates = {p["epoch"]: p["lr"] for p in read_lines(uninterrupted / "metrics.jsonl") if "lr" in p}
    assert rates[0] < 0.2
    assert rates[1] < 0.05


def test_the_teacher_is_the_largest_of_the_first_phase(
    uninterrupted: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undo = stop_at(11, monkeypatch)
    assert parse(Train, ["--config", str(recipe), "--out", str(tmp_path / "run")]).execute() == 130
    undo()
    _, net = load_network(tmp_path / "run")  # the average, since that is what a phase ends with
    wanted = extract(net, largest(net.space)).state_dict()
    teacher = load_weights(uninterrupted / "teacher.safetensors")
    assert all(torch.equal(teacher[name], wanted[name]) for name in wanted)


def trainer_at(step: int, recipe: Path, tmp_path: Path, tiny: Space) -> Trainer:
    """A trainer that took `step` steps."""
    config = parse(Train, ["--config", str(recipe)])
    data = load_data(config.data, torch.device("cpu"), 0)
    trainer = Trainer(config, RunFolder(tmp_path), filled(tiny, 10, 1), data, None, UniformSampler(tiny))
    for _, (x, y) in zip(
        range(step), (batch for epoch in range(3) for batch in data.train_batches(64, epoch)), strict=False
    ):
        trainer.begin_epoch()
        trainer.update(x, y)
    return trainer


def test_a_phase_starts_from_the_average_with_a_fresh_optimiser(
    recipe: Path, tmp_path: Path, tiny: Space
) -> None:
    trainer = trainer_at(11, recipe, tmp_path, tiny)
    assert trainer.optimizer.state
    average = {name: tensor.clone() for name, tensor in trainer.weights.state_dict().items()}
    assert any(
        not torch.equal(average[name], tensor) for name, tensor in trainer.supernet.state_dict().items()
    )
    trainer.begin_epoch()
    assert not trainer.optimizer.state
    for weights in (trainer.supernet, trainer.weights):
        assert all(torch.equal(average[name], tensor) for name, tensor in weights.state_dict().items())
    trainer.begin_epoch()


def test_channels_are_sorted_before_expansions_open(recipe: Path, tmp_path: Path, tiny: Space) -> None:
    trainer = trainer_at(22, recipe, tmp_path, tiny)
    weight = trainer.supernet.stages[1][1].project.conv.weight  # type: ignore[index, union-attr]

    def falls() -> bool:
        importance = weight.detach().abs().sum((0, 2, 3))
        edges = pairwise([0, hidden_width(8, 3), hidden_width(16, 3)])
        return all(bool((importance[a:b].diff() <= 0).all()) for a, b in edges)

    assert not falls()
    trainer.begin_epoch()
    assert falls()


def test_phases_and_one_architecture_exclude_each_other(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="phases shrink a supernet"):
        parse(Train, ["--config", str(recipe), "--arch", "smallest", "--out", str(tmp_path / "run")])
    with pytest.raises(UserError, match="sync_bn is not for phases"):
        parse(Train, ["--config", str(recipe), "--sync-bn", "--same-subnets"])
    with pytest.raises(UserError, match="leave sampling and distillation"):
        parse(Train, ["--config", str(recipe), "--sandwich.sampling.name", "macs_prior"])
    with pytest.raises(UserError, match="phases"):
        parse(Train, ["--config", str(recipe), "--phases", '[{"name": "x", "epochs": 0, "lr": 1}]'])
