"""One architecture as a plain torch module, and the exact statistics its BatchNorm needs.

Nothing here knows about sharing: `Subnet` is ordinary layers, so that torch, onnx and every other tool take
it as it is.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from engine import training
from engine.data.augment import resize
from engine.data.dataset import Batch, Data, Split
from ofa.blocks.layer_specs import hidden_width, squeeze_width
from ofa.space.space import Act, Arch, Space, Stage, encode
from ofa.space.space import Head as HeadChoices
from ofa.supernet import Supernet

EVALUATION_BATCH = (
    64  # on CPU, larger maps than these cost more in page faults than in arithmetic: 3 times at 256 x 128 px
)
ACTIVATION: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hard_swish": nn.Hardswish,
    "swish": nn.SiLU,
}


class ConvBN(nn.Sequential):
    """Convolution without bias, BatchNorm, activation (none if `act` is None)."""

    def __init__(
        self,
        space: Space,
        inp: int,
        out: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        act: Act | None = None,
    ):
        super().__init__()
        self.conv = nn.Conv2d(inp, out, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=space.bn_eps)
        if act:
            self.act = ACTIVATION[act]()


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation: pool, reduce, ReLU, restore, hard sigmoid, scale."""

    def __init__(self, width: int):
        super().__init__()
        self.reduce = nn.Conv2d(width, squeeze_width(width), 1)
        self.restore = nn.Conv2d(squeeze_width(width), width, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.relu(self.reduce(x.mean((2, 3), keepdim=True)))
        return x * nn.functional.hardsigmoid(self.restore(gate))


class Block(nn.Module):
    """Inverted bottleneck with the shortcut that the space prescribes."""

    def __init__(
        self,
        space: Space,
        stage: Stage,
        inp: int,
        out: int,
        kernel: int,
        expand: float,
        stride: int,
        changes: bool,
    ):
        super().__init__()
        hidden = hidden_width(inp, expand)
        projected = space.shortcut == "projected"
        self.expand = ConvBN(space, inp, hidden, act=stage.act) if stage.expand != (1,) else None
        self.depthwise = ConvBN(space, hidden, hidden, kernel, stride, hidden, stage.act)
        self.se = SqueezeExcite(hidden) if stage.se else None
        self.project = ConvBN(space, hidden, out)
        self.residual = projected or (stride == 1 and inp == out)
        self.pool = nn.AvgPool2d(stride) if projected and stride > 1 else None
        self.shortcut = nn.Conv2d(inp, out, 1, bias=False) if projected and inp != out else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(x if self.expand is None else self.expand(x))
        y = self.project(y if self.se is None else self.se(y))
        if not self.residual:
            return y
        x = x if self.pool is None else self.pool(x)
        x = x if self.shortcut is None else self.shortcut(x)
        return y + x


class Bottleneck(nn.Module):
    """ResNet-D bottleneck: 1x1, k x k with the stride, 1x1, shortcut, activation."""

    def __init__(
        self,
        space: Space,
        stage: Stage,
        inp: int,
        out: int,
        kernel: int,
        expand: float,
        stride: int,
        changes: bool,
    ):
        super().__init__()
        hidden = hidden_width(out, expand)
        self.reduce = ConvBN(space, inp, hidden, act=stage.act)
        self.conv = ConvBN(space, hidden, hidden, kernel, stride, act=stage.act)
        self.project = ConvBN(space, hidden, out)
        self.pool = nn.AvgPool2d(stride, ceil_mode=True) if stride > 1 else None
        self.shortcut = ConvBN(space, inp, out) if changes else None
        self.act = ACTIVATION[stage.act]()

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.conv(self.reduce(x)))
        x = x if self.pool is None else self.pool(x)
        return self.act(y + (x if self.shortcut is None else self.shortcut(x)))


class DeepStem(nn.Module):
    """ResNet-D's stem: convolutions of 3 x 3, the middle ones residual, and a max pool."""

    def __init__(self, space: Space, channels: int, width: int, middle: int, residual: int):
        super().__init__()
        act = space.stem.act
        self.first = ConvBN(space, channels, middle, 3, space.stem.stride, act=act)
        self.residual = nn.ModuleList(ConvBN(space, middle, middle, 3, act=act) for _ in range(residual))
        self.last = ConvBN(space, middle, width, 3, act=act)
        self.pool = nn.MaxPool2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for conv in self.residual:
            x = x + conv(x)
        return self.pool(self.last(x))


class Head(nn.Module):
    """1x1 convolution, global pool, and for the MobileNetV3 form one more linear layer."""

    def __init__(self, space: Space, head: HeadChoices, inp: int, width: int):
        super().__init__()
        wide = head.expand * inp if head.expand else width
        self.conv = ConvBN(space, inp, wide, act=head.act)
        self.mix = nn.Linear(wide, width, bias=head.bias) if head.expand else None
        self.act = ACTIVATION[head.act]() if head.expand else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).mean((2, 3))
        return x if self.mix is None or self.act is None else self.act(self.mix(x))


class Subnet(nn.Module):
    """The network of `arch`. Takes (N, channels, r, r) with r the architecture's resolution; returns logits
    (N, classes).

    Raises:
        UserError: `arch` is not of `space`.
    """

    def __init__(self, space: Space, arch: Arch, classes: int, channels: int = 3):
        super().__init__()
        encode(space, arch)
        self.arch = arch
        width = arch.width[0]
        if space.stem.deep:
            self.stem: ConvBN | DeepStem = DeepStem(space, channels, width, *arch.stem)
        else:
            self.stem = ConvBN(space, channels, width, 3, space.stem.stride, act=space.stem.act)
        blocks: list[nn.Module] = []
        for i, stage in enumerate(space.stages):
            kind, out = Bottleneck if stage.block == "bottleneck" else Block, arch.width[i + 1]
            for j in range(arch.depth[i]):
                slot, stride = space.slot(i, j), stage.stride if j == 0 else 1
                blocks.append(
                    kind(
                        space,
                        stage,
                        width,
                        out,
                        arch.kernel[slot],
                        arch.expand[slot],
                        stride,
                        space.changes_width(i, j),
                    )
                )
                width = out
        self.blocks = nn.Sequential(*blocks)
        self.head = Head(space, space.head, width, arch.width[-1]) if space.head else None
        self.classifier = nn.Linear(arch.width[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x))
        return self.classifier(x.mean((2, 3)) if self.head is None else self.head(x))


def prepare(supernet: Supernet, arch: Arch, data: Data, images: int) -> Subnet:
    """`arch`, extracted, calibrated on `images` training images (always the same), in eval mode: ready to be
    measured or exported."""
    return calibrate(extract(supernet, arch), data.batches("train", EVALUATION_BATCH, images))


def extract(supernet: Supernet, arch: Arch) -> Subnet:
    """`arch` with its own copy of just the weights it uses, on the supernet's device. Calibrate it before
    use.

    Raises:
        UserError: `arch` is not of the supernet's space.
    """
    with torch.device("meta"):
        subnet = Subnet(supernet.space, arch, supernet.classes, supernet.channels)
    state = {
        name: tensor.detach().clone(memory_format=torch.contiguous_format)
        for name, tensor in supernet.slices(arch).items()
    }
    for name, tensor in subnet.state_dict().items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.zeros_like(tensor, device="cpu")
    subnet.load_state_dict(state, assign=True)
    return subnet.to(memory_format=torch.channels_last).train(supernet.training)


@torch.no_grad()
def calibrate(subnet: Subnet, batches: Iterable[Batch]) -> Subnet:
    """Exact BatchNorm statistics over `batches`, and eval mode. Returns the same module.

    Every layer sees inputs normalised by each batch's own statistics, as in training. Its stored mean and
    variance are those of all values it saw, pooled over batches (variance within plus variance between,
    unbiased), however the images are split into batches of unequal size; not exponential averages.
    """
    pools = {m: _Pool() for m in subnet.modules() if isinstance(m, nn.BatchNorm2d)}
    hooks = [bn.register_forward_hook(pool.add) for bn, pool in pools.items()]
    subnet.train()
    with _momentum(pools, 1.0):  # after each batch the buffers hold that batch's own statistics
        for x, _ in batches:
            subnet(resize(x, subnet.arch.resolution))
    for hook in hooks:
        hook.remove()
    for bn, pool in pools.items():
        pool.write(bn)
    return subnet.eval()


def accuracy(subnet: Subnet, data: Data, split: Split) -> float:
    """Top-1 accuracy in [0, 1] of `subnet` on a split, in float32 as exported."""
    return training.accuracy(
        lambda x: subnet(resize(x, subnet.arch.resolution)), data.batches(split, EVALUATION_BATCH)
    )


class _Pool:
    """Running count, mean and sum of squared deviations of a layer's input channels (Chan, Golub, LeVeque
    1983)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor | float = 0.0
        self.square: Tensor | float = 0.0

    def add(self, bn: nn.BatchNorm2d, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        assert bn.running_mean is not None and bn.running_var is not None
        count = inputs[0].numel() // inputs[0].shape[1]
        total = self.count + count
        exact = torch.float32 if bn.running_mean.device.type == "mps" else torch.float64  # MPS has no float64
        delta = bn.running_mean.to(exact) - self.mean
        self.mean = self.mean + delta * (count / total)
        self.square = (
            self.square + bn.running_var.to(exact) * (count - 1) + delta**2 * (self.count * count / total)
        )
        self.count = total

    def write(self, bn: nn.BatchNorm2d) -> None:
        assert bn.running_mean is not None and bn.running_var is not None
        assert isinstance(self.mean, Tensor) and isinstance(self.square, Tensor), (
            "calibrate needs at least one batch"
        )
        bn.running_mean.copy_(self.mean)
        bn.running_var.copy_(self.square / (self.count - 1))


@contextmanager
def _momentum(norms: Iterable[nn.BatchNorm2d], value: float) -> Iterator[None]:
    norms = list(norms)
    before = [bn.momentum for bn in norms]
    for bn in norms:
        bn.momentum = value
    yield
    for bn, momentum in zip(norms, before, strict=True):
        bn.momentum = momentum
