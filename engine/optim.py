"""SGD, learning rates as pure functions of the step, how optimisers compute, and averages of weights."""

import copy
import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from engine.config import Config


class Exponential(Config):
    """Exponential decay, constant once it reaches `floor` of the start (BigNAS, 2020, arXiv:2003.11142)."""

    name: Literal["exponential"] = "exponential"
    floor: float = Field(
        0.05, gt=0, le=1, description="where the decay ends and the rate stays, as a fraction of lr"
    )
    floor_at: float = Field(
        0.65,
        gt=0,
        le=1,
        description=(
            "fraction of training at which floor is reached (BigNAS: 0.97 every 2.4 of 360 epochs, 0.65)"
        ),
    )


class Cosine(Config):
    """Half a cosine from lr to 0 (AttentiveNAS, 2021, arXiv:2011.09011; OFA, 2020, arXiv:1908.09791)."""

    name: Literal["cosine"] = "cosine"
    over_warmup: bool = Field(
        False,
        description=(
            "the cosine runs over all steps and is multiplied by the warm-up (AttentiveNAS); off: it begins "
            "after the warm-up (OFA)"
        ),
    )


Schedule = Annotated[Cosine | Exponential, Field(discriminator="name")]


class SGD(Config):
    """Stochastic gradient descent with momentum."""

    lr: float = Field(0.1, gt=0, description="learning rate at its highest")
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = Field(True, description="Nesterov's look-ahead")
    weight_decay: float = Field(
        1e-5, ge=0, description="L2 penalty of every weight, once per step however many subnets it trains"
    )
    decay_all: bool = Field(False, description="decay BatchNorm and biases, too")
    clip_value: float | None = Field(
        1.0, gt=0, description="clip each gradient entry to +- this; none: no clipping"
    )
    clip_norm: float | None = Field(
        None, gt=0, description="scale all gradients down where their norm is larger; none: no clipping"
    )
    warmup_epochs: float = Field(5, ge=0, description="linear warm-up from warmup_start")
    warmup_start: float = Field(0.0, ge=0, lt=1, description="where the warm-up begins, as a share of lr")
    schedule: Schedule = Exponential()


def learning_rate(config: SGD, step: int, total: int, warmup: int) -> float:
    """The learning rate of a step.

    Args:
        config: its highest value, and how it falls.
        step: number of the step, from 0.
        total: steps of the whole training.
        warmup: steps at the start in which the rate climbs linearly to `config.lr`.
    """
    start, schedule = config.warmup_start, config.schedule
    if isinstance(schedule, Cosine) and schedule.over_warmup:
        # Counted from 0, unlike the warm-up below: the published code begins at its start exactly.
        climbed = min(step / warmup, 1.0) if warmup else 1.0
        return config.lr * (start + (1 - start) * climbed) * _half_cosine(step / total)
    if step < warmup:
        # step + 1: a first step at rate 0 would change nothing, and the last one here has the full rate.
        return config.lr * (start + (1 - start) * (step + 1) / warmup)
    # The maximum is for a warm-up as long as the training, which leaves nothing to divide by.
    done = (step - warmup) / max(total - warmup, 1)
    match schedule:
        case Exponential(floor=floor, floor_at=floor_at):
            return config.lr * max(math.pow(floor, done / floor_at), floor)
        case Cosine():
            return config.lr * _half_cosine(done)


def _half_cosine(passed: float) -> float:
    """From 1 to 0 as `passed` goes from 0 to 1."""
    return 0.5 * (1 + math.cos(math.pi * passed))


def build_sgd(config: SGD, model: nn.Module) -> torch.optim.SGD:
    """SGD with two groups: weights of layers, then tensors of one axis, which are BatchNorm's and biases.

    Only the first group is decayed, unless `config.decay_all` says otherwise.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    # By the number of axes, which tells weights from scales, shifts and biases in every kind of layer.
    layers = [p for p in parameters if p.ndim > 1]
    norms_and_biases = [p for p in parameters if p.ndim <= 1]
    groups = [
        {"params": layers, "weight_decay": config.weight_decay},
        {"params": norms_and_biases, "weight_decay": config.weight_decay if config.decay_all else 0.0},
    ]
    nesterov = config.nesterov and config.momentum > 0  # torch refuses Nesterov's form without momentum
    fused = computes_fused(parameters)
    optimizer = torch.optim.SGD(groups, config.lr, config.momentum, nesterov=nesterov, fused=fused)
    if fused and config.momentum > 0:
        optimizer.register_step_pre_hook(_start_momentum)
    return optimizer


def _start_momentum(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """Give weights with a gradient a momentum of 0 if they have none, which is where torch's loop starts.

    A step of a supernet trains some of the weights. Torch's fused SGD fails where others have a momentum
    already and these have none.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            if parameter.grad is not None and state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(parameter)


def computes_fused(parameters: Iterable[Tensor]) -> bool | None:
    """Torch's `fused`: whether an optimiser moves all parameters in one pass; None: as torch decides.

    Where launches are what a step waits for, a pass over a list is a handful of kernels instead of one for
    each parameter. On CPU it rounds otherwise than torch's loop (6e-8), and saves 4 ms of a step of DARTS
    that takes 1.9 s, so runs there stay as they were.
    """
    return True if all(parameter.device.type != "cpu" for parameter in parameters) else None


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Take up the state of an optimiser that may have run on another device.

    torch would also take up how that one computed, such as `fused`.
    """
    ways = ("fused", "foreach", "capturable")
    own = [{way: group[way] for way in ways if way in group} for group in optimizer.param_groups]
    optimizer.load_state_dict(dict(state))
    for group, kept in zip(optimizer.param_groups, own, strict=True):
        # A rate is a tensor where a step was captured as a graph (`engine.compute.graphs`).
        group.update(kept, lr=float(group["lr"]))
    for parameter, values in optimizer.state.items():
        counter = values.get("step")
        # A fused step counts on the parameter's device.
        if isinstance(counter, Tensor) and computes_fused([parameter]):
            values["step"] = counter.to(parameter.device)


def current_rate(optimizer: torch.optim.Optimizer) -> float:
    """The learning rate of the first parameter group; the host waits for it where it is on a device."""
    return float(optimizer.param_groups[0]["lr"])


def clip_gradients(config: SGD, model: nn.Module) -> None:
    """Clip the gradients of `model` in place as `config` says, without waiting for the device."""
    if config.clip_value:
        nn.utils.clip_grad_value_(model.parameters(), config.clip_value)
    if config.clip_norm:
        nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Give every parameter group the learning rate `value`."""
    for group in optimizer.param_groups:
        # A graph reads its rate from a tensor, which stays the same one.
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(value)
        else:
            group["lr"] = value


class RunningAverage:
    """The average of a network's weights over the steps, and a network that has it.

    Either the exponential average that EfficientNet and BigNAS evaluate, after every step average = decay *
    average + (1 - decay) * weights, or the mean of the weights after all steps (ASGD). torch's AveragedModel
    computes the same weights, but also copies every buffer in every step, one kernel each, and sends its
    counter to the device.

    Args:
        network: whose weights are averaged; it stays as it is.
        decay: share of the average that a step keeps, in [0, 1]; None: all steps weigh the same.
    """

    def __init__(self, network: nn.Module, decay: float | None = None):
        self.source, self.decay = network, decay
        self.averaged = copy.deepcopy(network)
        self.updates = 0
        # Lists that are made once: to walk through the modules of a supernet in each step takes time.
        self._average: list[Tensor] = list(self.averaged.parameters())
        self._weights: list[Tensor] = list(network.parameters())

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the weights as they are now; the first call copies them."""
        if self.updates == 0:
            torch._foreach_copy_(self._average, self._weights)
        elif self.decay is not None:
            torch._foreach_lerp_(self._average, self._weights, 1 - self.decay)
        else:
            way = torch._foreach_sub(self._weights, self._average)
            torch._foreach_div_(way, self.updates + 1)
            torch._foreach_add_(self._average, way)
        self.updates += 1

    @property
    def network(self) -> nn.Module:
        """The network with the averaged weights, and with the buffers that the source has now.

        Buffers, such as statistics of BatchNorm, are not averaged. To copy them here, where somebody looks,
        gives what a copy in each step gives.
        """
        buffers = list(self.averaged.buffers())
        if self.updates and buffers:
            with torch.no_grad():
                torch._foreach_copy_(buffers, list(self.source.buffers()))
        return self.averaged

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"updates": self.updates, "network": self.network.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        weights: dict[str, Tensor] = state["network"]
        self.averaged.load_state_dict(weights)
        self.updates = int(state["updates"])
