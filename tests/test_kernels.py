"""Launches of a step, counted on the meta device: more than these mean a slower step on every GPU.

Who lowers a count lowers the number here, too. Who must raise one says why in the commit.
"""

import pytest
import torch

from benchmarks.kernel_steps import Step, sandwich, search
from benchmarks.kernels import Count, count, launches
from oneshot.methods.darts import Darts
from oneshot.spaces.cells import find_space

MOST = {"search": 729, "second order": 1862, "sandwich": 1048}


def first_order() -> Step:
    return search(Darts(), find_space("nasbench201"), 2, cells=1)


def second_order() -> Step:
    return search(Darts(order="second"), find_space("nasbench201"), 2, cells=1)


def supernet() -> Step:
    return sandwich("digits", 2)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("search", first_order),
        pytest.param("second order", second_order, marks=pytest.mark.slow),
        pytest.param("sandwich", supernet, marks=pytest.mark.slow),
    ],
)
def test_a_step_launches_no_more_kernels_than_before(name: str, make: object) -> None:
    found: Count = count(make)  # type: ignore[arg-type]
    assert found.total <= MOST[name], found.kernels.most_common(12)
    # A count far below is a count of something else, or a number that should be lowered here.
    assert found.total > 0.9 * MOST[name]


def test_launches_of_lists_follow_the_limits_of_torch() -> None:
    small = [torch.empty(10, device="meta") for _ in range(200)]
    assert launches([small]) == 2, "110 tensors a launch where there is one list"
    assert launches([small, small, small]) == 5, "48 where there are three"
    large = [torch.empty(1000 * 65_536, device="meta")]
    assert launches([large]) == 4, "320 blocks of 65,536 numbers a launch"
    mixed = [small[0], torch.empty(10, dtype=torch.half, device="meta")]
    assert launches([mixed]) == 2, "tensors of two types are computed one by one"


def test_what_counts_as_a_kernel() -> None:
    def make() -> Step:
        x = torch.empty(2, 4, 8, 8, device="meta")
        weight = torch.empty(4, 4, 3, 3, device="meta", requires_grad=True)

        def step() -> None:
            y = torch.nn.functional.conv2d(x, weight)
            # Views are none; backward begins with a tensor of ones and ends with a sum of gradients.
            y.view(2, -1).t().relu().sum().backward()

        return step

    found = count(make)
    forward, backward = {"convolution", "relu", "sum"}, {"ones_like", "threshold_backward", "add_"}
    # A single result: x needs no gradient.
    assert found.kernels == dict.fromkeys(forward | backward | {"convolution_backward"}, 1)
    macs = 2 * 6 * 6 * 4 * 4 * 9
    assert found.flops == 2 * (2 * macs)
