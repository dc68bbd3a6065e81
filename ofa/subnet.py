"""One architecture as a plain torch module, and how it is cut out of a supernet.

Nothing here knows about sharing: `Subnet` is ordinary layers, so that torch, onnx and every other tool take
it as it is.
"""

import torch
from torch import Tensor, nn

from engine.blocks.head import HeadSpec, PlainHead
from engine.blocks.kind import BlockSpec
from engine.blocks.stem import StemSpec, plain_stem
from engine.blocks.table import block_kind
from ofa.layers import layer_specs
from ofa.space.arch import Arch, check_arch
from ofa.space.space import Space
from ofa.supernet import Supernet

# How many times smaller than the image the maps are that detectors and segmenters build on.
FEATURE_STRIDES = (4, 8, 16, 32)


class Subnet(nn.Module):
    """The network of `arch` as plain layers.

    It takes images (N, channels, r, r), where r is the architecture's resolution, to logits (N, classes);
    `features` takes them to maps. `feature_channels` has the channels of these maps by their strides.

    Args:
        space: of the architecture.
        arch: the architecture.
        classes: outputs of the classifier.
        channels: input channels.

    Raises:
        UserError: `arch` is not of `space`.
    """

    def __init__(self, space: Space, arch: Arch, classes: int, channels: int = 3):
        super().__init__()
        check_arch(space, arch)
        stem, *blocks, head = layer_specs(space, arch, classes, channels)
        assert isinstance(stem, StemSpec) and isinstance(head, HeadSpec)
        self.arch = arch
        self.stem = plain_stem(stem, space.bn_eps)
        self.blocks = nn.Sequential()
        # By stride: the blocks before its last map, which later maps of the same stride replace.
        self._feature_depth: dict[int, int] = {}
        self.feature_channels: dict[int, int] = {}
        self._note_features(space.stem.total_stride, stem.width)
        stride = space.stem.total_stride
        for spec in blocks:
            assert isinstance(spec, BlockSpec)
            self.blocks.append(block_kind(spec.block).plain(spec, space.bn_eps))
            stride *= spec.stride
            self._note_features(stride, spec.out)
        self.head = PlainHead(head, space.bn_eps) if head.wide else None
        self.classifier = nn.Linear(head.features, classes)

    def _note_features(self, stride: int, channels: int) -> None:
        """Note the map after the blocks that are there so far."""
        if stride in FEATURE_STRIDES:
            self._feature_depth[stride] = len(self.blocks)
            self.feature_channels[stride] = channels

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x))
        return self.classifier(x.mean((2, 3)) if self.head is None else self.head(x))

    def features(self, x: Tensor) -> dict[int, Tensor]:
        """The last map at each stride of 4, 8, 16 and 32 that the network has, for a detector or segmenter.

            maps = subnet.features(images)
            maps[16].shape                  # (N, subnet.feature_channels[16], H / 16, W / 16)

        Args:
            x: normalised images (N, channels, H, W), also of another size than the architecture's.

        Returns:
            Maps by stride, the largest map first. The head and the classifier have no part in them.
        """
        maps = {}
        x, done = self.stem(x), 0
        for stride, depth in self._feature_depth.items():
            x, done = self.blocks[done:depth](x), depth
            maps[stride] = x
        return maps


def extract(supernet: Supernet, arch: Arch) -> Subnet:
    """Cut `arch` out: a plain module with a copy of the weights it uses, on the supernet's device.

    Calibrate it before use (`ofa.calibration.calibrate`): its BatchNorm statistics are not yet its own.

    Args:
        supernet: where the weights come from; it is not changed.
        arch: the architecture.

    Returns:
        The subnet, channels_last, in the mode (train or eval) of the supernet.

    Raises:
        UserError: `arch` is not of the supernet's space.
    """
    # On the meta device no weights are made only to be replaced.
    with torch.device("meta"):
        subnet = Subnet(supernet.space, arch, supernet.classes, supernet.channels)
    state = {}
    for name, tensor in supernet.slices(arch).items():
        # A copy, not a view: a view would keep the whole supernet in memory and change as it trains on.
        state[name] = tensor.detach().clone(memory_format=torch.contiguous_format)
    # Plain BatchNorm layers have a counter that the supernet's lack, and load_state_dict insists on it.
    for name, tensor in subnet.state_dict().items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.zeros_like(tensor, device="cpu")
    subnet.load_state_dict(state, assign=True)  # a tensor on the meta device cannot be copied into
    return subnet.to(memory_format=torch.channels_last).train(supernet.training)
