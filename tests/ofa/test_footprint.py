"""Peak memory against a simulation on the traced network; file size against files that were really
exported."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

import ofa
from engine.onnx_file import write_onnx
from ofa.cost import CLASS_BYTES, METADATA_BYTES, footprints_of
from ofa.space.space import Arch, Space, decode, encode, largest, load_space, sample, smallest
from ofa.subnet import Subnet

IN_PLACE = (nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU)


def simulated_peak(net: nn.Module, image: torch.Tensor) -> int:
    """Bytes alive at the worst moment: the traced graph run node by node; elementwise nodes overwrite the
    first input that dies."""
    graph = fx.symbolic_trace(net)
    ShapeProp(graph).propagate(image)
    modules = dict(graph.named_modules())
    nodes = list(graph.graph.nodes)
    last_use = {used: i for i, node in enumerate(nodes) for used in node.all_input_nodes}
    size = {node: 4 * int(np.prod(node.meta["tensor_meta"].shape)) for node in nodes if node.op != "output"}
    alive, peak = 0, 0
    for i, node in enumerate(nodes):
        if node.op == "output":
            break
        dying = [used for used in node.all_input_nodes if last_use[used] == i]
        pointwise = isinstance(modules.get(str(node.target)), IN_PLACE) or getattr(
            node.target, "__name__", ""
        ) in {
            *("add", "mul", "relu", "hardsigmoid"),
        }
        same = [used for used in dying if size[used] == size[node]]
        if pointwise and same:
            alive -= sum(size[used] for used in dying) - size[node]
            continue
        alive += size[node]
        peak = max(peak, alive)
        alive -= sum(size[used] for used in dying)
    return peak


def built(space: Space, arch: Arch, classes: int, channels: int) -> tuple[Subnet, torch.Tensor]:
    with torch.device("meta"):
        net = Subnet(space, arch, classes, channels)
        return net.eval(), torch.empty(1, channels, arch.resolution, arch.resolution)


@pytest.mark.parametrize("name", [p.stem for p in Path(ofa.__path__[0]).glob("space/spaces/*.yaml")])
def test_peak_memory_equals_a_simulation(name: str) -> None:
    space, rng = load_space(name), np.random.default_rng(0)
    for arch in [smallest(space), largest(space), *(sample(space, rng) for _ in range(4))]:
        for classes, channels in ((1000, 3), (5, 1)):
            found = footprints_of(space, encode(space, arch)[None], classes, channels).memory[0]
            assert found == simulated_peak(*built(space, arch, classes, channels)), arch


def test_peak_memory_where_residual_inputs_decide(tiny: Space) -> None:
    wide = [stage.model_copy(update={"width": (64,), "expand": (1,), "se": True}) for stage in tiny.stages]
    for shortcut in ("identity", "projected"):
        changes = {
            "name": "wide",
            "granularity": "block",
            "shortcut": shortcut,
            "head": None,
            "stages": tuple(wide),
        }
        space = Space.model_validate(
            tiny.model_dump() | changes | {"stages": [stage.model_dump() for stage in wide]}
        )
        rng = np.random.default_rng(1)
        for _ in range(10):
            arch = sample(space, rng)
            assert footprints_of(space, encode(space, arch)[None], 7, 2).memory[0] == simulated_peak(
                *built(space, arch, 7, 2)
            )


def test_many_at_once_are_the_same_as_one_by_one() -> None:
    from ofa.space.space import sample_codes

    space = load_space("ofa_mbv3")
    codes = sample_codes(space, 50, np.random.default_rng(0))
    many = footprints_of(space, codes)
    for i, row in enumerate(codes):
        one = footprints_of(space, encode(space, decode(space, row))[None])
        assert (one.memory[0], one.file[0]) == (many.memory[i], many.file[i])


@pytest.mark.parametrize("name", ["digits", "small128"])
def test_file_size_is_that_of_an_exported_file(name: str, tmp_path: Path) -> None:
    space = load_space(name)
    arch = smallest(space)
    torch.manual_seed(0)
    net = Subnet(space, arch, 10, 3).eval()
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.bias)  # as after training; the exporter stores equal tensors once
    write_onnx(net, torch.zeros(2, 3, arch.resolution, arch.resolution), tmp_path / "x.onnx", {})
    plain = footprints_of(space, encode(space, arch)[None], 10, 3).file[0] - METADATA_BYTES - 10 * CLASS_BYTES
    size = (tmp_path / "x.onnx").stat().st_size
    assert onnx.load(tmp_path / "x.onnx").metadata_props == []
    assert abs(plain - size) < 0.01 * size
