"""The step is the paper's: who learns from what, who is regularised, and that gradients add up."""

from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from engine.blocks.elastic import add_gradients_in_place
from engine.seed import numpy_generator
from ofa.space.arch import Arch, largest, smallest
from ofa.space.codes import decode, sample
from ofa.space.space import Space
from ofa.supernet import Supernet
from ofa.train import Train
from ofa.training.losses import AlphaDivergence, alpha_divergence, soft_cross_entropy
from ofa.training.sampling import Attentive, AttentiveSampler, Judge, Sampler, UniformSampler, build_sampler
from ofa.training.sandwich import Sandwich, Seeds, label_losses, label_step, sandwich_step


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(8, 3, 12, 12, generator=generator), torch.randint(0, 5, (8,), generator=generator)


def supernet(space: Space) -> Supernet:
    torch.manual_seed(0)
    return Supernet(space, 5).double()


def test_soft_cross_entropy_is_its_formula_and_leaves_the_teacher_alone() -> None:
    student, teacher = torch.randn(6, 4, requires_grad=True), torch.randn(6, 4, requires_grad=True)
    loss = soft_cross_entropy(student, teacher)
    torch.testing.assert_close(loss, -(teacher.softmax(1) * student.log_softmax(1)).sum(1).mean())
    loss.backward()
    assert teacher.grad is None
    torch.testing.assert_close(student.grad, ((student.softmax(1) - teacher.softmax(1)) / 6).detach())


def uniform_students(space: Space, count: int, seed: int, step: int) -> list[Arch]:
    """What a step trained before sampling was a choice: the default must stay this, bit for bit."""
    rng = numpy_generator(seed, "subnets", step)
    return [*(sample(space, rng) for _ in range(count)), smallest(space)]


@pytest.mark.parametrize(("share", "with_smallest"), [(0, True), (0.25, True), (1, True), (0.25, False)])
def test_gradients_and_losses_add_up(
    tiny: Space, batch: tuple[torch.Tensor, torch.Tensor], share: float, with_smallest: bool
) -> None:
    x, y = batch[0].double(), batch[1]
    settings = {"label_share": share, "smallest": with_smallest}
    config = Sandwich(random=2, label_smoothing=0.1, dropout=0, drop_connect=0, **settings)
    net = supernet(tiny)
    losses = sandwich_step(net, x, y, 3, config, seeds=Seeds(7, 7))

    other = supernet(tiny)
    teacher = other(x, largest(tiny))
    wanted = [F.cross_entropy(teacher.float(), y, label_smoothing=0.1)]
    students = uniform_students(tiny, 2, 7, 3)
    for arch in students if with_smallest else students[:-1]:
        logits = other(x, arch)
        of_labels = F.cross_entropy(logits.float(), y, label_smoothing=0.1)
        # A share of 0 is the paper's loss.
        wanted.append(share * of_labels + (1 - share) * soft_cross_entropy(logits, teacher))
    torch.stack(wanted).sum().backward()
    torch.testing.assert_close(losses, torch.stack(wanted).detach())
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6)


def test_somebody_learns_beside_the_largest() -> None:
    with pytest.raises(ValueError, match="only the largest learns"):
        Sandwich(random=0, smallest=False)
    with pytest.raises(ValueError, match="the gradient of the smallest"):
        Train(sandwich=Sandwich(smallest=False), log_conflicts=5)


def test_only_the_largest_is_regularised(
    tiny: Space, batch: tuple[torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    original = Supernet.forward

    def spy(self: Supernet, x: torch.Tensor, arch: object, regularise: object = None) -> torch.Tensor:
        seen.append((arch, regularise))
        return original(self, x, arch, regularise)  # type: ignore[arg-type]

    monkeypatch.setattr(Supernet, "forward", spy)
    sandwich_step(
        supernet(tiny),
        batch[0].double(),
        batch[1],
        0,
        Sandwich(dropout=0.3, drop_connect=0.2),
    )
    (first, strength), *others = seen
    assert first == largest(tiny)
    assert (strength.dropout, strength.drop_connect) == (0.3, 0.2)
    assert len(others) == 3
    assert all(regularise is None for _, regularise in others)


def test_a_step_depends_on_its_seed_and_number_only(
    tiny: Space, batch: tuple[torch.Tensor, torch.Tensor]
) -> None:
    config = Sandwich()
    x, y = batch[0].double(), batch[1]
    torch.manual_seed(1)
    one = sandwich_step(supernet(tiny), x, y, 5, config)
    torch.manual_seed(2)
    assert torch.equal(one, sandwich_step(supernet(tiny), x, y, 5, config))
    assert not torch.equal(one, sandwich_step(supernet(tiny), x, y, 6, config))


def test_probabilities_as_labels(tiny: Space, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, y = batch[0].double(), batch[1]
    config = Sandwich(random=0, dropout=0, drop_connect=0)
    hard = sandwich_step(supernet(tiny), x, y, 0, config)
    soft = sandwich_step(supernet(tiny), x, F.one_hot(y, 5).float(), 0, config)
    torch.testing.assert_close(hard, soft)


def test_the_divergence_is_what_all_students_learn(
    tiny: Space, batch: tuple[torch.Tensor, torch.Tensor]
) -> None:
    x, y = batch[0].double(), batch[1]
    config = Sandwich(random=1, dropout=0, drop_connect=0, distillation=AlphaDivergence(clip=2))
    net, other = supernet(tiny), supernet(tiny)
    losses = sandwich_step(net, x, y, 3, config, seeds=Seeds(7, 7))
    teacher = other(x, largest(tiny))
    wanted = [F.cross_entropy(teacher.float(), y, label_smoothing=0.1)]
    wanted += [alpha_divergence(other(x, a), teacher, clip=2) for a in uniform_students(tiny, 1, 7, 3)]
    torch.stack(wanted).sum().backward()
    torch.testing.assert_close(losses, torch.stack(wanted).detach())
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6)


class Remembers:
    """A sampler that keeps what it drew and what its judge said of a few others."""

    def __init__(self, sampler: Sampler, others: list[Arch]):
        self.sampler, self.others = sampler, others

    def draw(self, rng: np.random.Generator, count: int, judge: Judge) -> list[Arch]:
        self.drawn, self.said = self.sampler.draw(rng, count, judge), judge(self.others)
        return self.drawn


def test_the_judge_is_the_label_loss_on_the_batch_and_leaves_no_gradient(
    tiny: Space, batch: tuple[torch.Tensor, torch.Tensor]
) -> None:
    x, y = batch[0].double(), batch[1]
    config = Sandwich(random=2, label_smoothing=0.1, dropout=0.5)
    archs = uniform_students(tiny, 4, 0, 0)
    remembers = Remembers(UniformSampler(tiny), archs)
    net, other = supernet(tiny), supernet(tiny)
    losses = sandwich_step(net, x, y, 0, config, remembers)
    assert remembers.said == pytest.approx(
        [F.cross_entropy(other(x, a).float(), y, label_smoothing=0.1).item() for a in archs]
    )
    assert remembers.drawn == uniform_students(tiny, 2, 0, 0)[:2]
    torch.testing.assert_close(losses, sandwich_step(other, x, y, 0, config))
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


@pytest.mark.parametrize("mode", ["bestup", "worstup"])
def test_a_step_trains_the_best_or_the_worst_candidates(
    tiny: Space, batch: tuple[torch.Tensor, torch.Tensor], mode: Literal["bestup", "worstup"]
) -> None:
    x, y = batch[0].double(), batch[1]
    net = supernet(tiny)
    sampler = build_sampler(Attentive(mode=mode, samples=20_000), tiny, 5, 3)
    assert isinstance(sampler, AttentiveSampler)
    remembers = Remembers(sampler, [])
    for step in range(5):
        sandwich_step(net, x, y, step, Sandwich(), remembers)
        candidates = sampler.prior.draw(numpy_generator(0, "subnets", step), 2, 3)
        for chosen, rows in zip(remembers.drawn, candidates, strict=True):
            archs = [decode(tiny, row) for row in rows]
            losses = label_losses(net, archs, x, y, 0.1)
            pick = min if mode == "bestup" else max
            assert label_losses(net, [chosen], x, y, 0.1)[0] == pick(losses)
            assert chosen in archs


@pytest.mark.parametrize("kernels", ["crop", "transform"])
def test_gradients_of_slices_that_are_added_in_place_are_the_same_bits(
    tiny: Space, batch: tuple[torch.Tensor, torch.Tensor], kernels: str
) -> None:
    space = Space.model_validate(tiny.model_dump() | {"kernels": kernels})
    found = []
    for in_place in (False, True):
        torch.manual_seed(0)
        net = Supernet(space, 5).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if in_place:
            add_gradients_in_place(net)
        # The second step of a run adds to nothing either: gradients are cleared to None.
        for step in (0, 1):
            net.zero_grad()
            sandwich_step(net, *batch, step, Sandwich(random=2))
        found.append({name: parameter.grad for name, parameter in net.named_parameters()})
        # A network that comes alone leaves the gradient of what it does not use at 0.
        net.zero_grad()
        label_step(net, smallest(space), *batch, Sandwich(), (0, 0))
        found[-1] |= {f"alone {name}": parameter.grad for name, parameter in net.named_parameters()}
    separate, added = found
    for name, gradient in separate.items():
        wanted = added[name]
        assert (gradient is None) == (wanted is None), name
        assert gradient is None or wanted is None or torch.equal(gradient, wanted), name
