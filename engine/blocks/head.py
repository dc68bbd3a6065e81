"""The head and the classifier, which turn the last map into logits: elastic, plain, spec and cost."""

from typing import NamedTuple

from torch import Tensor, nn

from engine.blocks.activation import ACTIVATION_LAYERS
from engine.blocks.elastic import ElasticConv, ElasticConvBN, ElasticLinear, Slices, prefixed
from engine.blocks.kind import activation_entries
from engine.blocks.plain import ConvBN
from engine.blocks.sizes import chain_memory, head_width
from engine.compute.fast import ACTIVATION


class HeadSpec(NamedTuple):
    """What follows the last block on a `size` x `size` map of `inp` channels.

    [1x1 convolution to `wide`,] global pool, [linear layer to `width`,] classifier. `wide` is 0 without the
    first of these layers, `width` is 0 without the second; `bias` is of the second, and `norm` says whether a
    BatchNorm follows it.
    """

    size: int
    inp: int
    wide: int
    width: int
    bias: bool
    act: str
    classes: int
    norm: bool = False

    @property
    def features(self) -> int:
        """Inputs of the classifier."""
        return self.width or self.wide or self.inp


class ElasticHead(nn.Module):
    """The head in the supernet: from the last map to features (N, width)."""

    def __init__(self, widest: HeadSpec, expand: float | None, eps: float):
        super().__init__()
        self.expand = expand
        self.conv = ElasticConvBN(ElasticConv(widest.inp, widest.wide), widest.act, eps)
        self.mix: ElasticLinear | ElasticConvBN | None = None
        if widest.norm:
            self.mix = ElasticConvBN(ElasticConv(widest.wide, widest.width), widest.act, eps)
        elif widest.width:
            self.mix = ElasticLinear(widest.wide, widest.width, widest.bias)
        self.act = ACTIVATION[widest.act]

    def forward(self, x: Tensor, width: int) -> Tensor:
        x = self.conv(x, self._wide(x.shape[1], width))
        if isinstance(self.mix, ElasticConvBN):
            # A pooled map of 1 x 1, so that the layer is a convolution as any other before a BatchNorm: what
            # folds or calibrates those knows this one, too.
            return self.mix(x.mean((2, 3), keepdim=True), width).flatten(1)
        features = x.mean((2, 3))
        return features if self.mix is None else self.act(self.mix(features, width))

    def _wide(self, inputs: int, width: int) -> int:
        # In MobileNetV3 the convolution is a multiple of the last stage wide, and `width` is of the layer
        # after it. MobileNetV2 has no such layer: there `width` is of the convolution.
        return width if self.expand is None else head_width(inputs, self.expand)

    def slices(self, inputs: int, width: int) -> Slices:
        wide = self._wide(inputs, width)
        found = prefixed("conv", self.conv.slices(inputs, wide))
        return found if self.mix is None else found | prefixed("mix", self.mix.slices(wide, width))


class PlainHead(nn.Module):
    """The head as plain layers."""

    def __init__(self, spec: HeadSpec, eps: float):
        super().__init__()
        self.conv = ConvBN(spec.inp, spec.wide, 1, 1, spec.act, eps)
        self.norm = spec.norm
        self.mix: ConvBN | nn.Linear | None = None
        self.act = None
        if spec.norm:
            self.mix = ConvBN(spec.wide, spec.width, 1, 1, spec.act, eps)
        elif spec.width:
            self.mix = nn.Linear(spec.wide, spec.width, bias=spec.bias)
            self.act = ACTIVATION_LAYERS[spec.act]()

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if isinstance(self.mix, ConvBN):
            return self.mix(x.mean((2, 3), keepdim=True)).flatten(1)
        x = x.mean((2, 3))
        return x if self.mix is None or self.act is None else self.act(self.mix(x))


class HeadAndClassifier(nn.Module):
    """Everything after the last block, from a map to logits.

    A subnet has the same two parts under the same names.
    """

    def __init__(self, spec: HeadSpec, eps: float):
        super().__init__()
        self.head = PlainHead(spec, eps) if spec.wide else None
        self.classifier = nn.Linear(spec.features, spec.classes)

    def forward(self, x: Tensor) -> Tensor:
        features = x.mean((2, 3)) if self.head is None else self.head(x)
        return self.classifier(features)


def cost_of_head(spec: HeadSpec) -> tuple[int, int]:
    """(MACs, parameters)."""
    macs = spec.size**2 * spec.inp * spec.wide
    params = (spec.inp + 2) * spec.wide  # 2: scale and shift of BatchNorm
    if spec.width:
        macs += spec.wide * spec.width
        params += (spec.wide + spec.bias) * spec.width
    if spec.norm:
        params += 2 * spec.width
    return macs + spec.features * spec.classes, params + (spec.features + 1) * spec.classes


def memory_of_head(spec: HeadSpec) -> int:
    """The most float32 numbers alive at once, the head's input included."""
    area = spec.size**2
    maps = [area * spec.inp]
    if spec.wide:
        maps.append(area * spec.wide)
    maps.append(spec.wide or spec.inp)
    if spec.width:
        maps.append(spec.width)
    return chain_memory([*maps, spec.classes])


def stored_of_head(spec: HeadSpec) -> tuple[int, int]:
    """(numbers in an exported ONNX file, entries of its graph)."""
    layer = 2 + activation_entries(spec.act)
    entries = 3  # the pool, and the classifier with its tensors
    if spec.wide:
        entries += layer
    if spec.width:
        entries += layer
    # Folding leaves one bias per channel of the two numbers that BatchNorm has.
    numbers = cost_of_head(spec)[1] - spec.wide
    if spec.norm:
        numbers -= spec.width
        entries += 1  # the 1 x 1 map becomes features
    return numbers, entries
