"""Peak memory by simulation: the traced network run node by node, the oracle for the closed form."""

import numpy as np
import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from engine.blocks.plain import SamePad
from ofa.space.arch import Arch
from ofa.space.space import Space
from ofa.subnet import Subnet

IN_PLACE = (nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU)
IN_PLACE_FUNCTIONS = {"add", "mul", "relu", "silu", "hardsigmoid", "sigmoid"}


class Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # Its zeros depend on the size of a map, which a trace does not know.
        return isinstance(m, SamePad) or super().is_leaf_module(m, module_qualified_name)


def simulated_peak(space: Space, arch: Arch, classes: int, channels: int) -> int:
    """Bytes alive at the worst moment; elementwise nodes overwrite the first input that dies."""
    net = Subnet(space, arch, classes, channels).eval()
    graph = fx.GraphModule(net, Tracer().trace(net))
    # With numbers: for networks this small, meta tensors, whose shapes Python computes, take thrice as long.
    with torch.no_grad():
        ShapeProp(graph).propagate(torch.zeros(1, channels, arch.resolution, arch.resolution))
    modules = dict(graph.named_modules())
    for node in graph.graph.nodes:
        if isinstance(modules.get(str(node.target)), SamePad):
            # An exported file has these zeros in the convolution after them, and no map of its own for them.
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    nodes = [node for node in graph.graph.nodes if node.op != "output"]
    last_use = {used: node for node in graph.graph.nodes for used in node.all_input_nodes}
    size = {node: 4 * int(np.prod(node.meta["tensor_meta"].shape)) for node in nodes}
    alive, peak = 0, 0
    for node in nodes:
        dying = [used for used in node.all_input_nodes if last_use[used] is node]
        function = getattr(node.target, "__name__", "")
        pointwise = isinstance(modules.get(str(node.target)), IN_PLACE) or function in IN_PLACE_FUNCTIONS
        if pointwise and any(size[used] == size[node] for used in dying):
            alive -= sum(size[used] for used in dying) - size[node]
            continue
        alive += size[node]
        peak = max(peak, alive)
        alive -= sum(size[used] for used in dying)
    return peak
