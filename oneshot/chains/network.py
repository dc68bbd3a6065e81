"""Networks of chains: that of a search, a function of (images, edge weights), and that of a found chain."""

from collections.abc import Sequence

from torch import Tensor, nn

from engine.blocks.head import HeadAndClassifier
from engine.blocks.layers import plain_layer
from engine.blocks.stem import plain_stem
from oneshot.axes.edge_weights import EdgeWeights, NetworkEdgeWeights
from oneshot.chains.layers import ImageShape, block_spec, chain_head, chain_sizes, chain_specs, chain_stem
from oneshot.chains.operation import SKIP
from oneshot.chains.space import CHAIN, ChainSpace


class MixedLayer(nn.Module):
    """A searched layer: the weighted sum of its operations.

    Args:
        space: of the layer.
        number: of the layer in the space.
        size: side of its input map.
    """

    def __init__(self, space: ChainSpace, number: int, size: int):
        super().__init__()
        layer = space.layers[number]
        self.operations = space.operations
        self.same_shape = layer.stride == 1 and layer.inp == layer.out
        self.skips = SKIP in layer.operations
        self.blocks = nn.ModuleDict()
        for name in layer.operations:
            spec = block_spec(space, layer, name, size)
            if spec is not None:
                self.blocks[name] = plain_layer(spec, space.bn_eps)

    def forward(self, x: Tensor, weight_O: Tensor, active: Sequence[int] | None) -> Tensor:
        """The sum of weight times operation of x.

        Args:
            x: (N, C, H, W).
            weight_O: weight of each operation of the space.
            active: the operations that run; None: all that the layer offers.
        """
        terms = []
        for column, name in enumerate(self.operations):
            if active is not None and column not in active:
                continue
            if name in self.blocks:
                terms.append(weight_O[column] * self.blocks[name](x))
            elif name == SKIP and self.skips:
                terms.append(weight_O[column] * x)
        result = terms[0]
        for term in terms[1:]:
            result = result + term
        return result


class ChainNetwork(nn.Module):
    """The search network of a space of chains. No architecture parameters live in it.

    Args:
        space: what is searched.
        image: what it is built for.
    """

    def __init__(self, space: ChainSpace, image: ImageShape):
        super().__init__()
        self.stem = plain_stem(chain_stem(space, image), space.bn_eps)
        self.layers = nn.ModuleList()
        for number, (layer, size) in enumerate(zip(space.layers, chain_sizes(space, image), strict=False)):
            if number in space.searched:
                self.layers.append(MixedLayer(space, number, size))
                continue
            # No choice: the one block as it is, or nothing.
            spec = block_spec(space, layer, layer.operations[0], size)
            self.layers.append(nn.Identity() if spec is None else plain_layer(spec, space.bn_eps))
        self.head = HeadAndClassifier(chain_head(space, image), space.bn_eps)
        _initialise(self)

    def forward(self, x_NCHW: Tensor, edge_weights: NetworkEdgeWeights, create_graph: bool = False) -> Tensor:
        """Logits (N, K).

        Args:
            x_NCHW: images.
            edge_weights: for the kind `chain`, a row for each searched layer.
            create_graph: as in other search networks; these layers can always be differentiated twice.
        """
        weights = edge_weights[CHAIN]
        x = self.stem(x_NCHW)
        edge = 0
        for layer in self.layers:
            if not isinstance(layer, MixedLayer):
                x = layer(x)
                continue
            x = self._mixed(layer, x, weights, edge)
            edge += 1
        return self.head(x)

    def _mixed(self, layer: MixedLayer, x: Tensor, weights: EdgeWeights, edge: int) -> Tensor:
        """The output of the searched layer number `edge`."""
        active = None if weights.active is None else weights.active[edge]
        y = layer(x, weights.weight_EO[edge], active)
        # Where the shape changes, no skip connection without weights is possible.
        if weights.skip is not None and layer.same_shape:
            y = y + weights.skip * x
        if weights.offset_E is not None:
            y = y + weights.offset_E[edge]
        return y


class FinalChain(nn.Sequential):
    """The network of a found chain: stem, blocks, head and classifier, as plain layers.

    Args:
        space: of the chain.
        operations: one for each layer.
        image: what it is built for.
    """

    def __init__(self, space: ChainSpace, operations: Sequence[str], image: ImageShape):
        stem, *blocks, head = chain_specs(space, operations, image)
        super().__init__()
        self.stem = plain_layer(stem, space.bn_eps)
        self.blocks = nn.Sequential(*[plain_layer(block, space.bn_eps) for block in blocks])
        self.head = plain_layer(head, space.bn_eps)
        _initialise(self)


def _initialise(network: nn.Module) -> None:
    """Draw the convolutions' weights by He's rule on outputs, as both papers' codes do."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
