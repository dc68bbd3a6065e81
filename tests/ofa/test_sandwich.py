"""The step is the paper's: who learns from what, who is regularised, and that gradients add up."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from engine.seed import numpy_generator
from ofa.losses import soft_cross_entropy
from ofa.sandwich import Sandwich, sandwich_step, students_of
from ofa.space import Space, largest, smallest
from ofa.supernet import Supernet


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


def test_students_are_random_ones_and_the_smallest(tiny: Space) -> None:
    net = supernet(tiny)
    students = students_of(net, Sandwich(random=3), np.random.default_rng(0))
    assert len(students) == 4
    assert students[-1] == smallest(tiny)
    assert students != students_of(net, Sandwich(random=3), np.random.default_rng(1))


def test_gradients_and_losses_add_up_as_in_the_paper(tiny: Space, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, y = batch[0].double(), batch[1]
    config = Sandwich(random=2, label_smoothing=0.1, dropout=0, drop_connect=0)
    net = supernet(tiny)
    losses = sandwich_step(net, x, y, config, seed=7, step=3)

    other = supernet(tiny)
    teacher = other(x, largest(tiny))
    wanted = [F.cross_entropy(teacher.float(), y, label_smoothing=0.1)]
    wanted += [soft_cross_entropy(other(x, a), teacher) for a in students_of(other, config, numpy_generator(7, "subnets", 3))]
    torch.stack(wanted).sum().backward()
    torch.testing.assert_close(losses, torch.stack(wanted).detach())
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6)


def test_only_the_largest_is_regularised(tiny: Space, batch: tuple[torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = Supernet.forward

    def spy(self: Supernet, x: torch.Tensor, arch: object, regularise: object = None) -> torch.Tensor:
        seen.append((arch, regularise))
        return original(self, x, arch, regularise)  # type: ignore[arg-type]

    monkeypatch.setattr(Supernet, "forward", spy)
    sandwich_step(supernet(tiny), batch[0].double(), batch[1], Sandwich(dropout=0.3, drop_connect=0.2), 0, 0)
    (first, strength), *others = seen
    assert first == largest(tiny)
    assert (strength.dropout, strength.drop_connect) == (0.3, 0.2)
    assert len(others) == 3
    assert all(regularise is None for _, regularise in others)


def test_a_step_depends_on_its_seed_and_number_only(tiny: Space, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    config = Sandwich()
    x, y = batch[0].double(), batch[1]
    torch.manual_seed(1)
    one = sandwich_step(supernet(tiny), x, y, config, 0, 5)
    torch.manual_seed(2)
    assert torch.equal(one, sandwich_step(supernet(tiny), x, y, config, 0, 5))
    assert not torch.equal(one, sandwich_step(supernet(tiny), x, y, config, 0, 6))


def test_probabilities_as_labels(tiny: Space, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, y = batch[0].double(), batch[1]
    config = Sandwich(random=0, dropout=0, drop_connect=0)
    hard = sandwich_step(supernet(tiny), x, y, config, 0, 0)
    soft = sandwich_step(supernet(tiny), x, F.one_hot(y, 5).float(), config, 0, 0)
    torch.testing.assert_close(hard, soft)
