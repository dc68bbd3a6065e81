"""A network computed as its 8-bit file will, in torch: every tensor rounded to 256 levels and back.

It follows what `export.graph.quantize` writes: weights signed, symmetric, with one scale a channel;
activations unsigned, with one range a tensor; what one integer kernel computes (convolution, BatchNorm, ReLU)
is rounded once, at its end. Rounding passes gradients on as if it were not there (straight-through estimator:
"Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", 2017,
arXiv:1712.05877).

It works on what a network calls and not on its modules, so weights keep their names and no copy of the
network is made. torch's own tools for this (pt2e, now in torchao) trace a network into another module with
other parameters, from which neither a checkpoint nor `engine.onnx_file` could go on.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

WEIGHTED = {torch.conv2d, F.conv2d, F.linear}
NORMS = {F.batch_norm, torch.batch_norm}
# A ReLU is part of the kernel before it: its output's range says all.
CLIPS = {F.relu, torch.relu, Tensor.relu, F.relu6, F.hardtanh}
OTHERS = {
    *(F.hardswish, F.hardsigmoid, torch.sigmoid, Tensor.sigmoid, F.avg_pool2d, F.max_pool2d),
    *(torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__iadd__, Tensor.__radd__),
    *(torch.mul, Tensor.mul, Tensor.mul_, Tensor.__mul__, Tensor.__imul__, Tensor.__rmul__),
    *(torch.mean, Tensor.mean, torch.cat, F.adaptive_avg_pool2d),
}
# They move numbers without changing them.
MOVES = {torch.flatten, Tensor.flatten, Tensor.reshape, Tensor.view, Tensor.contiguous, F.pad}
COMPUTED = WEIGHTED | NORMS | CLIPS | OTHERS

Ranges = dict[int, tuple[Tensor, Tensor]]  # (least, most) of a tensor, by its place among the calls


class FakeQuantize(TorchFunctionMode):
    """While the block runs, networks compute as their 8-bit files do.

        ranges: Ranges = {}
        with torch.no_grad():
            for x in calibration:
                with FakeQuantize(ranges, "widen"):
                    network(x)
        with FakeQuantize(ranges):
            logits = network(x)

    One block is one pass through the network: ranges belong to calls by their order.

    Args:
        ranges: of the activations; it is filled in place.
        learn: "widen": nothing is rounded, and the ranges grow to hold all that is seen, as a calibration of
            onnxruntime; "batch": they are those of this batch, for training, as BatchNorm takes its
            statistics; None: they stay.
    """

    def __init__(self, ranges: Ranges, learn: Literal["widen", "batch"] | None = None):
        super().__init__()
        self.ranges, self.learn, self.calls = ranges, learn, 0
        # What made a tensor, by its identity; the tensor is kept alive, so that none is taken for another.
        self.made: dict[int, tuple[Tensor, int, Any]] = {}
        self.rounded: dict[int, Tensor] = {}  # by the place of the tensor among the calls

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in MOVES:
            out = func(*args, **kwargs)
            if id(args[0]) in self.made:
                _, place, maker = self.made[id(args[0])]
                self.made[id(out)] = out, place, maker
            return out
        if func is F.silu:  # in a file, a sigmoid and a product
            gate = self.__torch_function__(torch.sigmoid, types, args[:1])
            return self.__torch_function__(torch.mul, types, (args[0], gate))
        if func not in COMPUTED:
            return func(*args, **kwargs)
        place, self.calls = self.calls, self.calls + 1
        inputs = [self._input(value, func, place) for value in args]
        if func in WEIGHTED:
            inputs[1] = args[1] if self.learn == "widen" else round_weight(args[1])
            inputs[2:] = args[2:]
        out = func(*inputs, **kwargs)
        self.made[id(out)] = out, place, func
        return out

    def _input(self, value: Any, func: Callable[..., Any], place: int) -> Any:
        """What `func` reads: the tensor rounded, if it is an activation that a file would store."""
        if isinstance(value, list | tuple):  # of torch.cat
            return [self._input(part, func, place) for part in value]
        if not isinstance(value, Tensor):
            return value
        if id(value) not in self.made:
            # The image, which the first layer reads; anything else is a parameter or a constant.
            if func in WEIGHTED and value.dim() in (2, 4) and not value.requires_grad and place == 0:
                return self._round(value, -1)
            return value
        _, made_at, maker = self.made[id(value)]
        # One kernel computes both, and nothing is stored between them.
        if func in NORMS or (func in CLIPS and maker not in CLIPS):
            return value
        return self._round(value, made_at)

    def _round(self, x: Tensor, place: int) -> Tensor:
        """An activation in 256 levels of its range."""
        if self.learn:
            self._see(x.detach(), place)
        if self.learn == "widen":
            return x
        if place not in self.rounded:  # one tensor may have several readers
            self.rounded[place] = round_activation(x, *self.ranges[place])
        return self.rounded[place]

    def _see(self, x: Tensor, place: int) -> None:
        """Let the range of a tensor grow, or take this batch's; zero is always in it, as padding is zero."""
        least, most = x.amin().clamp(max=0).float(), x.amax().clamp(min=0).float()
        if self.learn == "widen" and place in self.ranges:
            before = self.ranges[place]
            least, most = torch.minimum(before[0], least), torch.maximum(before[1], most)
        self.ranges[place] = least, most


def round_activation(x: Tensor, least: Tensor, most: Tensor) -> Tensor:
    """x in 256 levels from `least` to `most`, one of which is zero.

    Gradients pass where x is between them.
    """
    scale = ((most - least) / 255).clamp(min=torch.finfo(torch.float32).tiny)
    zero = (-least / scale).round().clamp(0, 255).to(torch.int32)
    # The kernel exists in float32 only; under autocast x may be of 16 bits.
    rounded: Tensor = torch.fake_quantize_per_tensor_affine(x.float(), scale, zero, 0, 255)
    return rounded.to(x.dtype)


def round_weight(weight: Tensor) -> Tensor:
    """A weight (O, ...) in 255 levels around zero, with one scale for each of its O outputs.

    The scale that BatchNorm multiplies a channel by does not matter here: it multiplies the levels too. So
    the weights need not be folded before they are rounded.
    """
    scale = weight.detach().flatten(1).abs().amax(1).float() / 127
    scale = scale.clamp(min=torch.finfo(torch.float32).tiny)
    zero = torch.zeros_like(scale, dtype=torch.int32)
    rounded: Tensor = torch.fake_quantize_per_channel_affine(weight.float(), scale, zero, 0, -127, 127)
    return rounded.to(weight.dtype)
