"""A layer spec, of whichever part of a network: its cost, its name and its module.

A layer spec describes a stem, a block or a head by what it computes, wherever it stands. Networks of a
supernet and chains of blocks are lists of them. A latency table keeps milliseconds by these names.
"""

from torch import nn

from engine.blocks.head import HeadAndClassifier, HeadSpec, cost_of_head
from engine.blocks.kind import BlockSpec
from engine.blocks.stem import StemSpec, cost_of_stem, plain_stem
from engine.blocks.table import block_kind

LayerSpec = StemSpec | BlockSpec | HeadSpec


def cost_of_layer(layer: LayerSpec) -> tuple[int, int]:
    """(MACs, parameters)."""
    match layer:
        case StemSpec():
            return cost_of_stem(layer)
        case BlockSpec():
            return block_kind(layer.block).cost(layer)
        case HeadSpec():
            return cost_of_head(layer)


def plain_layer(layer: LayerSpec, eps: float) -> nn.Module:
    """The layer as a torch module with random weights; `eps`: epsilon of its BatchNorms."""
    match layer:
        case StemSpec():
            return plain_stem(layer, eps)
        case BlockSpec():
            return block_kind(layer.block).plain(layer, eps)
        case HeadSpec():
            return HeadAndClassifier(layer, eps)


def structure(layer: LayerSpec) -> str:
    """A name for what a layer computes, whatever the size of its map; items and files are named by it.

    It joins the fields of the layer by dashes, with the flags that are on:
    `inverted-40-240-40-k5-s1-expands-se-residual-relu`.
    """
    match layer:
        case StemSpec():
            words = ["stem", str(layer.channels), str(layer.width)]
            if layer.kernel != 3:
                words.append(f"k{layer.kernel}")
            words.append(f"s{layer.stride}")
            if layer.deep:
                plain = f"p{layer.plain}" if layer.plain else ""
                words.append(f"deep{layer.middle}x{layer.residual}{plain}")
            elif layer.pool:
                words.append("pool")
            if layer.same:
                words.append(_same_padding(layer))
            return "-".join([*words, layer.act])
        case BlockSpec():
            on = ["expands"] if layer.expands else []
            if layer.se is not None:
                on.append(layer.se.label)
            on += [name for name in ("residual", "projects", "strided") if getattr(layer, name)]
            if layer.same:
                on.append(_same_padding(layer))
            if layer.groups > 1:
                on.append(f"g{layer.groups}")
            widths = f"{layer.inp}-{layer.hidden}-{layer.out}"
            kernels = [f"start{layer.start}"] if layer.start else []
            kernels.append(f"k{layer.kernel}")
            return "-".join([layer.block, widths, *kernels, f"s{layer.stride}", *on, layer.act])
        case HeadSpec():
            words = ["head", str(layer.inp)]
            if layer.wide:
                words.append(f"{layer.wide}{layer.act}")
            if layer.width:
                words.append(f"{layer.width}{'b' * layer.bias}{'n' * layer.norm}")
            return "-".join([*words, str(layer.classes)])


def _same_padding(layer: StemSpec | BlockSpec) -> str:
    """A word for TensorFlow's padding: the zeros in a file are those for one remainder of the map's side."""
    return f"same{layer.size % layer.stride}"


def layer_name(layer: LayerSpec) -> str:
    """The name of a layer as an item: its structure and the side of its input map."""
    return f"{structure(layer)}@{layer.size}"
