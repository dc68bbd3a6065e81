"""The pretended GPU notices what a real one would refuse or wait for, wherever it is planted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pretended_gpu import CUDA, Gpu, Mixed, pretended_gpu
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from engine.compute.device import send_together
from engine.data.augment import random_crop
from ofa.calibration import calibrate
from ofa.space.arch import smallest
from ofa.space.space import load_space
from ofa.subnet import extract
from ofa.supernet import Supernet

ROOT = Path(__file__).parents[2]
Plant = Callable[[Tensor], Any]  # gets a vector of three ones, on the device


def if_tensor(x: Tensor) -> None:
    if x.sum():
        pass


def nested(x: Tensor) -> Tensor:
    """Numbers of the device in a list: each of them is read."""
    return torch.tensor([x[0], x[1]])


def assigned(x: Tensor) -> None:
    x[0] = 1.0


def masked_tensor(x: Tensor) -> None:
    x[x > 0] = torch.zeros(3, device=CUDA)


WAITS: dict[str, Plant] = {
    "item": lambda x: x[0].item(),
    "float": lambda x: float(x[0]),
    "int": lambda x: int(x[0]),
    "bool": lambda x: bool(x[0]),
    "if": if_tensor,
    "max": lambda x: max(x[0], x[1]),
    "in": lambda x: 1.0 in x,
    "range": lambda x: range(x[0].long()),
    "cpu": lambda x: x.cpu(),
    "to cpu": lambda x: x.to("cpu"),
    "tolist": lambda x: x.tolist(),
    "print": lambda x: str(x),
    "format": lambda x: f"{x[0]:.3f}",
    "tensor": lambda x: torch.tensor([1.0], device=CUDA),
    "new_tensor": lambda x: x.new_tensor([1.0]),
    "as_tensor": lambda x: torch.as_tensor(np.ones(3), device=CUDA),
    "nested": nested,
    "assigned": assigned,
    "mask": lambda x: x[x > 0],
    "masked tensor": masked_tensor,
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 0),
    "unique": lambda x: x.unique(),
    "equal": lambda x: torch.equal(x, x),
    "allclose": lambda x: torch.allclose(x, x),
    "list as index": lambda x: x[[0, 1]],
    "index of the host": lambda x: x[torch.zeros(2, dtype=torch.long)],
    "index by a number": lambda x: x[x[0].long()],
    "to the device": lambda x: torch.ones(3).to(CUDA),
    "not pinned": lambda x: torch.ones(3).to(CUDA, non_blocking=True),
    "copy_": lambda x: x.copy_(torch.ones(3)),
    "numpy": lambda x: torch.from_numpy(np.ones(3)).to(x.device, non_blocking=True),
    "synchronize": lambda x: torch.cuda.synchronize(),
    "event": lambda x: torch.cuda.Event().synchronize(),
}
MIXTURES: dict[str, Plant] = {
    "add": lambda x: x + torch.ones(3),
    "in place": lambda x: torch.ones(3).add_(x),
    "number in place": lambda x: torch.ones(()).add_(x[0]),
    "cat": lambda x: torch.cat([x, torch.ones(3)]),
    "stack": lambda x: torch.stack([x[0], torch.ones(())]),
    "where": lambda x: torch.where(x > 0, x, torch.ones(3)),
    "condition": lambda x: torch.where(torch.ones(3) > 0, x, x),
    "index": lambda x: torch.ones(3)[x.long()],
    "gather": lambda x: x.gather(0, torch.zeros(3, dtype=torch.long)),
    "masked_fill": lambda x: x.masked_fill(torch.ones(3) > 0, 0.0),
    "linear": lambda x: nn.Linear(3, 2)(x[None]),
    "matrix product": lambda x: x[None] @ torch.ones(3, 1),
    "foreach": lambda x: torch._foreach_add_([x], [torch.ones(3)]),
    "out": lambda x: torch.add(x, x, out=torch.empty(3)),
    "numpy": lambda x: x.numpy(),
    "asarray": lambda x: np.asarray(x),
    "rand": lambda x: torch.rand(3, generator=torch.Generator(), device=CUDA),
    "rand on the host": lambda x: torch.rand(3, generator=torch.Generator(CUDA)),
    "bernoulli": lambda x: torch.bernoulli(x, generator=torch.Generator()),
    "randperm": lambda x: torch.randperm(3, generator=torch.Generator(), device=CUDA),
    "uniform_": lambda x: x.uniform_(generator=torch.Generator().manual_seed(1)),
}


# Where a plant can be hidden: each of these calls it once on a tensor of the device.


def in_forward(plant: Plant) -> None:
    plant(torch.ones(3, device=CUDA))


class Planted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, plant: Plant) -> Tensor:
        ctx.plant = plant
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        ctx.plant(torch.ones_like(grad))
        return grad * 2, None


def in_backward(plant: Plant) -> None:
    x = torch.ones(3, device=CUDA, requires_grad=True)
    Planted.apply(x, plant).sum().backward()


def in_backward_hook(plant: Plant) -> None:
    x = torch.ones(3, device=CUDA, requires_grad=True)
    y = x * 2
    y.register_hook(lambda grad: plant(torch.ones_like(grad)) and None)
    torch.autograd.grad(y.sum(), x)


def in_forward_hook(plant: Plant) -> None:
    net = nn.Linear(3, 3).to(CUDA)
    net.register_forward_hook(lambda module, inputs, output: plant(inputs[0][0].clone()) and None)
    net(torch.ones(1, 3, device=CUDA))


def in_optimizer(plant: Plant) -> None:
    net = nn.Linear(3, 1).to(CUDA)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    optimizer.register_step_post_hook(lambda *_: plant(torch.ones(3, device=CUDA)) and None)
    net(torch.ones(1, 3, device=CUDA)).sum().backward()
    optimizer.step()


def in_augmentation(plant: Plant) -> None:
    images = torch.zeros(2, 1, 4, 4, dtype=torch.uint8, device=CUDA)
    plant(random_crop(images, 1, torch.Generator(CUDA)).flatten()[:3] + 1.0)


def in_moving_average(plant: Plant) -> None:
    ema = get_ema_multi_avg_fn(0.9)

    def averaged(averages: list[Tensor], values: list[Tensor], count: Any) -> None:
        ema(averages, values, count)
        plant(torch.ones_like(values[0]).flatten())

    net = nn.Linear(3, 1, bias=False).to(CUDA)
    average = AveragedModel(net, multi_avg_fn=averaged)
    average.update_parameters(net)
    average.update_parameters(net)


def in_calibration(plant: Plant) -> None:
    space = load_space("digits")
    subnet = extract(Supernet(space, 10, 1).to(CUDA), smallest(space))
    subnet.stem.register_forward_hook(lambda *_: plant(torch.ones(3, device=CUDA)) and None)
    batch = torch.zeros(4, 1, 8, 8, device=CUDA), torch.zeros(4, dtype=torch.long, device=CUDA)
    calibrate(subnet, [batch])


PLACES = [
    in_forward,
    in_backward,
    in_backward_hook,
    in_forward_hook,
    in_optimizer,
    in_augmentation,
    in_moving_average,
    in_calibration,
]
# Every plant in the forward pass; in other places one of each kind.
SOME_WAITS = ["item", "if", "tensor", "list as index", "mask", "print", "copy_", "tolist"]
SOME_MIXTURES = ["add", "cat", "where", "index", "uniform_", "numpy"]


def planted(plants: dict[str, Plant], some: list[str]) -> list[Any]:
    cases = []
    for place in PLACES:
        for name in plants if place is in_forward else some:
            cases.append(pytest.param(place, plants[name], id=f"{place.__name__}-{name}"))
    return cases


def harmless(x: Tensor) -> None:
    """What a step may do: kernels, numbers of Python, single numbers of the host, pinned copies."""
    x = (x * 2 + torch.ones(())).clamp(max=x[0])
    x[0:1] += 1
    x[x > 5] = 0.0
    torch.cat([x, x.new_zeros(2), torch.full((2,), 3.0, device=CUDA)])
    torch.rand(3, generator=torch.Generator(CUDA), device=x.device)
    nn.functional.one_hot(torch.zeros(3, dtype=torch.long, device=CUDA), 4)
    torch.ones(3).pin_memory().to(CUDA, non_blocking=True)
    x.copy_(torch.empty(3, pin_memory=True), non_blocking=True)
    assert x.device == CUDA and x.is_cuda and not x.is_cpu and x.double().device == CUDA
    assert torch.zeros(3).device.type == "cpu" and torch.zeros(3, device="meta").device.type == "meta"


@pytest.mark.parametrize("place", PLACES)
def test_what_a_step_may_do_is_no_wait(place: Callable[[Plant], None]) -> None:
    assert not recorded(place, harmless).syncs


@pytest.mark.parametrize(("place", "plant"), planted(WAITS, SOME_WAITS))
def test_a_wait_is_noticed(place: Callable[[Plant], None], plant: Plant) -> None:
    gpu = recorded(place, plant)
    assert gpu.syncs
    assert all(entry.startswith("tests/contracts/test_pretended_gpu.py:") for entry in gpu.syncs)


@pytest.mark.parametrize(("place", "plant"), planted(MIXTURES, SOME_MIXTURES))
def test_a_mixture_is_noticed(place: Callable[[Plant], None], plant: Plant) -> None:
    with pytest.raises(Mixed):
        recorded(place, plant)


def recorded(place: Callable[[Plant], None], plant: Plant) -> Gpu:
    """What was seen while `plant` ran in `place`, and nothing of what came before or after it."""
    with pretended_gpu(ROOT) as gpu:
        calls = []

        def watched(x: Tensor) -> None:
            calls.append(1)
            with gpu.record():
                plant(x)

        place(watched)
        assert calls
    return gpu


@pytest.mark.parametrize("settings", [{}, {"foreach": False}, {"foreach": True}, {"fused": True}])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_state_of_an_optimizer_on_the_host_is_noticed(
    kind: type[torch.optim.Optimizer], settings: dict[str, bool]
) -> None:
    with pretended_gpu(ROOT):
        net = nn.Linear(3, 2).to(CUDA)
        momentum = {"momentum": 0.9} if kind is torch.optim.SGD else {}
        optimizer = kind(net.parameters(), lr=0.1, **momentum, **settings)
        net(torch.ones(1, 3, device=CUDA)).sum().backward()
        optimizer.step()
        state = optimizer.state_dict()
        optimizer.load_state_dict(state)
        optimizer.step()  # torch itself brings state back to the device
        for buffers in optimizer.state.values():
            buffers.update({name: value.cpu() for name, value in buffers.items()})
        with pytest.raises(Mixed):
            optimizer.step()


@pytest.mark.parametrize("other", ["gradient", "momentum"])
def test_a_fused_step_with_other_strides_is_refused(other: str) -> None:
    """As on CUDA, whose fused optimisers go through memory and not through places."""
    with pretended_gpu(ROOT):
        weight = torch.zeros(2, 3, device=CUDA, requires_grad=True)
        optimizer = torch.optim.SGD([weight], 0.1, momentum=0.9, fused=True)
        weight.grad = torch.ones(2, 3, device=CUDA)
        optimizer.step()
        turned = torch.ones(3, 2, device=CUDA).t()
        if other == "gradient":
            weight.grad = turned
        else:
            optimizer.state[weight]["momentum_buffer"] = turned
        with pytest.raises(Mixed, match="strides"):
            optimizer.step()


def test_nothing_is_left_behind() -> None:
    before = torch.Generator, torch.cuda.is_available, torch.autocast, torch.autograd._engine_run_backward
    with pretended_gpu(ROOT) as gpu:
        assert torch.cuda.is_available() and torch.cuda.device_count() == 1
        with pytest.raises(Mixed), gpu.record():
            torch.ones(3, device="cuda:0") + torch.ones(3)
        assert not gpu.recording and len(gpu.mixed) == 1
    after = torch.Generator, torch.cuda.is_available, torch.autocast, torch.autograd._engine_run_backward
    assert after == before
    assert torch.ones(3).device.type == "cpu"


def test_small_tensors_travel_together() -> None:
    """All types and shapes in one copy that nobody waits for, and equal at the end."""
    tensors = [torch.arange(3), torch.tensor(2.5), torch.rand(2, 3).double(), torch.tensor([True, False])]
    tensors += [torch.zeros(0, 4), torch.rand(4, 2).t()]
    with pretended_gpu(ROOT) as gpu:
        with gpu.record():
            sent = send_together(tensors, CUDA)
            assert all(a is b for a, b in zip(send_together(sent, CUDA), sent, strict=True))
        assert not gpu.syncs and gpu.copies.total() == 1
        assert all(tensor.device == CUDA for tensor in sent)
        for tensor, wanted in zip(sent, tensors, strict=True):
            assert tensor.dtype == wanted.dtype and torch.equal(tensor.cpu(), wanted)
