"""What every kind of block must do, on spaces that use all its choices: `tests/support/supernets.py`."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from peak_memory import simulated_peak
from supernets import SPACES, filled, predicted_and_exported_size
from timing_graphs import optimised_steps
from torch import Tensor, nn

from engine.blocks.elastic import ElasticConvBN
from engine.blocks.kind import BlockChoice, BlockSpec
from engine.blocks.layers import LayerSpec, cost_of_layer, plain_layer, structure
from engine.blocks.stem import StemSpec
from engine.blocks.table import BLOCKS, block_kind
from engine.compute.macs import count_macs, count_parameters
from engine.errors import UserError
from engine.onnx_file import fold_batch_norm, traced
from ofa.cost import cost_of, footprints_of, memory_of_layer, stored_of_layer
from ofa.layers import layer_specs
from ofa.space.arch import Arch, active_blocks, largest, smallest
from ofa.space.codes import encode, sample
from ofa.space.space import Space
from ofa.subnet import Subnet, extract
from ofa.supernet import Supernet
from ofa.training.phases import Phase, sort_channels
from ofa.weights.widths import sort_widths
from predictors.latency.kit import distinct_layers, export_kit
from predictors.latency.published import published_keys

CASES = [pytest.param(s, id=f"{kind}, {name}") for kind, named in SPACES.items() for name, s in named.items()]
ONE_OF_EACH = [pytest.param(next(iter(named.values())), id=kind) for kind, named in SPACES.items()]


def archs_of(space: Space, count: int, seed: int = 0) -> list[Arch]:
    """The extremes and `count` random ones."""
    rng = np.random.default_rng(seed)
    return [smallest(space), largest(space), *(sample(space, rng) for _ in range(count))]


def test_every_kind_has_spaces_here_and_calls_itself_by_its_name() -> None:
    assert SPACES.keys() == BLOCKS.keys()
    for kind, named in SPACES.items():
        for space in named.values():
            layers = layer_specs(space, largest(space), 5, 3)
            assert kind in {layer.block for layer in layers if isinstance(layer, BlockSpec)}


@pytest.mark.parametrize("space", CASES)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_the_supernet_computes_what_the_extracted_subnet_does(space: Space, training: bool) -> None:
    net = filled(space).train(training)
    for arch in archs_of(space, 6):
        x = torch.randn(4, 3, arch.resolution, arch.resolution)
        with torch.no_grad():
            torch.testing.assert_close(extract(net, arch)(x), net(x, arch), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("space", CASES)
def test_a_block_has_its_tensors_under_the_names_of_the_plain_module(space: Space) -> None:
    net = Supernet(space, 5)
    for arch in archs_of(space, 2):
        width = arch.width[0]
        for stage, number, choice in active_blocks(space, arch):
            # Weights of one network are loaded into the shared tensors by these names.
            block = net.block(stage, number)
            assert block.slices(width, choice).keys() <= block.state_dict().keys()
            width = choice.width


@pytest.mark.parametrize("space", CASES)
def test_a_last_scale_of_zero_makes_a_block_its_shortcut(space: Space) -> None:
    net, archs = Supernet(space, 5), archs_of(space, 2)
    images = [torch.randn(4, 3, arch.resolution, arch.resolution) for arch in archs]
    with torch.no_grad():
        before = [net(x, arch) for x, arch in zip(images, archs, strict=True)]
        for stage in net.stages:
            for block in stage:
                norm = block.last_norm()
                if norm is None:
                    continue
                # The branch may be anything: only the shortcut decides what the block computes.
                for name, weight in block.named_parameters():
                    if not name.startswith("shortcut") and not any(weight is p for p in norm.parameters()):
                        weight.normal_()
        for x, arch, logits in zip(images, archs, before, strict=True):
            assert torch.equal(net(x, arch), logits)
            assert not torch.allclose(logits[0], logits[1], rtol=0, atol=1e-4), "a network of zeros"


@pytest.mark.slow
@pytest.mark.parametrize("space", CASES)
def test_macs_and_parameters_are_those_of_torchs_counter(space: Space) -> None:
    for arch in archs_of(space, 10, seed=1):
        net = Subnet(space, arch, classes=7, channels=2)
        image = torch.zeros(1, 2, arch.resolution, arch.resolution)
        assert cost_of(space, arch, 7, 2) == (count_macs(net, image), count_parameters(net))


@pytest.mark.slow
@pytest.mark.parametrize("space", CASES)
def test_peak_memory_is_that_of_the_traced_network(space: Space) -> None:
    for arch in archs_of(space, 8, seed=1):
        for classes, channels in ((1000, 3), (5, 1)):
            found = footprints_of(space, encode(space, arch)[None], classes, channels).memory[0]
            assert found == simulated_peak(space, arch, classes, channels), arch


@pytest.mark.slow
@pytest.mark.parametrize("space", ONE_OF_EACH)
def test_an_exported_file_has_the_predicted_size(space: Space, tmp_path: Path) -> None:
    predicted, size = predicted_and_exported_size(space, tmp_path)
    # The prediction is an upper bound, so that a limit holds; tests/ofa/test_footprint.py has the same one.
    assert size <= predicted < max(1.02 * size, size + 600)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [name for name, kind in BLOCKS.items() if kind.pads_same])
def test_same_padding_is_part_of_the_exported_convolution(kind: str, tmp_path: Path) -> None:
    predicted, size = predicted_and_exported_size(SPACES[kind]["same padding"], tmp_path)
    assert size <= predicted < max(1.02 * size, size + 600)
    graph = onnx.load(tmp_path / "x.onnx").graph
    assert "Pad" not in {node.op_type for node in graph.node}
    pads = set()
    for node in graph.node:
        pads.update(tuple(a.ints) for a in node.attribute if a.name == "pads")
    assert (0, 0, 1, 1) in pads


@pytest.mark.parametrize("space", CASES)
@pytest.mark.parametrize("expand", [1, 2])
def test_sorting_changes_no_trained_function_and_sorts(space: Space, expand: int) -> None:
    before = Phase(name="before", epochs=1, lr=0.1, expand=expand)
    net = filled(space).double().eval()
    rng = np.random.default_rng(0)
    trained = [largest(space), *(before.sample(space, rng) for _ in range(5))]
    untrained = smallest(space)
    x = torch.randn(2, 3, space.resolution[0], space.resolution[0], dtype=torch.float64)
    moves = any(len(stage.expand) > expand for stage in space.stages)
    with torch.no_grad():
        wanted, strange = [net(x, arch) for arch in trained], net(x, untrained)
        sort_channels(net, before)
        for arch, logits in zip(trained, wanted, strict=True):
            torch.testing.assert_close(net(x, arch), logits, rtol=1e-9, atol=1e-9)
        if moves:
            assert not torch.allclose(net(x, untrained), strange, rtol=1e-3), "nothing moved"
    if expand == 1:
        for weight, cuts in sorted_readers(net):
            importance = weight.abs().sum((0, 2, 3))
            for a, b in pairwise([0, *cuts, len(importance)]):
                assert (importance[a:b].diff() <= 0).all()


@pytest.mark.parametrize("space", CASES)
def test_sorting_widths_changes_no_function_of_the_widest_and_sorts(space: Space) -> None:
    net = filled(space).double().eval()
    x = torch.randn(2, 3, space.resolution[0], space.resolution[0], dtype=torch.float64)
    widest = [largest(space), smallest(space).model_copy(update={"width": largest(space).width})]
    elastic = any(column.field == "width" and len(column.values) > 1 for column in space.columns)
    with torch.no_grad():
        wanted, narrow = [net(x, arch) for arch in widest], net(x, smallest(space))
        sort_widths(net, net.classifier.weight.clone())
        for arch, logits in zip(widest, wanted, strict=True):
            torch.testing.assert_close(net(x, arch), logits, rtol=1e-9, atol=1e-9)
        if elastic:
            assert not torch.allclose(net(x, smallest(space)), narrow, rtol=1e-3), "nothing moved"
    if space.head is not None:
        assert (net.classifier.weight.abs().sum(0).diff() <= 0).all()


def sorted_readers(net: Supernet) -> Iterator[tuple[Tensor, list[int]]]:
    """What reads the hidden channels of each block, and the hidden widths of its largest expansion."""
    space = net.space
    for i, stage in enumerate(space.stages):
        if stage.expand == (1,):
            continue  # the hidden channels are those of the block's input, or there are none
        kind, settings = block_kind(stage.block), space.block_settings(i)
        for j in range(stage.depth[-1]):
            inputs = space.widths_before(i) if j == 0 else stage.width
            cuts = set()
            for inp, width in product(inputs, stage.width):
                choice = BlockChoice(width, stage.kernel[-1], stage.expand[-1])
                cuts.add(kind.spec(settings, space.block_position(i, j, inp), 8, choice).hidden)
            project = net.block(i, j).project
            assert isinstance(project, ElasticConvBN)
            yield project.conv.weight, sorted(cuts)


@pytest.mark.parametrize("space", ONE_OF_EACH)
def test_every_architecture_out_of_the_space_is_refused_by_name(space: Space) -> None:
    net, arch = filled(space), largest(space)
    x = torch.randn(1, 3, 16, 16)
    wrong = []
    for column in space.columns:
        value = max(column.values) + 2
        if column.field == "resolution":
            wrong.append((arch.model_copy(update={"resolution": value}), f"resolution = {value} is not in"))
            continue
        entries = list(getattr(arch, column.field))
        entries[column.position] = value
        changed_arch = arch.model_copy(update={column.field: tuple(entries)})
        place, choices = f"{column.field}[{column.position}]", ", ".join(map(str, column.values))
        said = f"{place} = {value} is not in space '{space.name}'; its choices are {choices}."
        wrong.append((changed_arch, said))
    for field in ("width", "depth", "kernel", "expand", "stem"):
        entries = getattr(arch, field)
        surplus = arch.model_copy(update={field: (*entries, 1)})
        wrong.append((surplus, f"{field} has {len(entries) + 1} entries, but space '{space.name}' has"))
    for other, said in wrong:
        for use in (lambda a: net(x, a), lambda a: extract(net, a), lambda a: cost_of(space, a, 5, 3)):
            with pytest.raises(UserError, match=re.escape(said)):
                use(other)


@pytest.mark.slow
@pytest.mark.parametrize("space", CASES)
def test_every_layer_can_be_timed_under_a_name_of_its_own(space: Space) -> None:
    named: dict[str, LayerSpec] = {}
    for layer in distinct_layers(space, 5, 3):
        same_but_size = layer._replace(size=0)
        assert named.setdefault(structure(layer), same_but_size) == same_but_size
        module = plain_layer(layer, space.bn_eps)
        channels = layer.channels if isinstance(layer, StemSpec) else layer.inp
        assert count_parameters(module) == cost_of_layer(layer)[1]
        assert count_macs(module, torch.zeros(1, channels, layer.size, layer.size)) == cost_of_layer(layer)[0]


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_kind_is_described(kind: str) -> None:
    assert "5×5" in BLOCKS[kind].describe(5, 4)
    assert BLOCKS[kind].description
    space = next(iter(SPACES[kind].values()))
    block = next(layer for layer in layer_specs(space, largest(space), 5, 3) if isinstance(layer, BlockSpec))
    assert block.block == kind
    if BLOCKS[kind].published_key is None:
        with pytest.raises(UserError, match=f"Published latency tables have no {kind} blocks"):
            published_keys(block)
    else:
        assert len(published_keys(block)) == 1


def test_an_unknown_block_is_refused_everywhere() -> None:
    space = next(iter(SPACES["inverted"].values()))
    values = space.model_dump()
    stages = (values["stages"][0] | {"block": "ghost"}, *values["stages"][1:])
    with pytest.raises(ValueError, match="There is no block 'ghost'; the kinds are inverted, bottleneck"):
        Space.model_validate(values | {"stages": stages})
    block = next(layer for layer in layer_specs(space, largest(space), 5, 3) if isinstance(layer, BlockSpec))
    ghost = block._replace(block="ghost")
    uses: list[Callable[[BlockSpec], object]] = [
        cost_of_layer,
        memory_of_layer,
        stored_of_layer,
        published_keys,
        lambda spec: plain_layer(spec, space.bn_eps),
    ]
    for use in uses:
        with pytest.raises(UserError, match="There is no block 'ghost'"):
            use(ghost)


class SideBySide(nn.Module):
    """Layers that have nothing to do with each other, in one module: torch exports them in one go."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(layer(x) for layer, x in zip(self.layers, inputs, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("space", ONE_OF_EACH)
def test_graphs_that_latency_kits_write_run_as_those_of_the_exporter(space: Space, tmp_path: Path) -> None:
    """One layer of each set of flags; widths and sides do not matter here."""
    found: dict[str, LayerSpec] = {}
    for arch in (smallest(space), largest(space)):
        for layer in layer_specs(space, arch, 5, 3):
            found.setdefault(re.sub(r"\d+", "#", structure(layer)), layer)
    no_networks = encode(space, smallest(space))[None][:0]
    export_kit(space, list(found.values()), no_networks, 5, 3, tmp_path, str)
    written, modules, images = [], [], []
    for layer in found.values():
        module = plain_layer(layer, space.bn_eps).eval()
        for part in module.modules():
            # The exporter leaves out a bias of zeros, and no trained network has one.
            if isinstance(part, nn.BatchNorm2d):
                nn.init.normal_(part.bias)
        channels = layer.channels if isinstance(layer, StemSpec) else layer.inp
        modules.append(fold_batch_norm(module))
        images.append(torch.zeros(1, channels, layer.size, layer.size))
        written += optimised_steps(tmp_path / f"{structure(layer)}.onnx", layer.size)
    numbers = [str(i) for i in range(len(found))]
    outputs = [f"y{number}" for number in numbers]
    whole = traced(SideBySide(modules).eval(), tuple(images), numbers, outputs, None)
    onnx.save(whole, tmp_path / "exported.onnx")
    exported = optimised_steps(tmp_path / "exported.onnx", 0)
    assert Counter(written) == Counter(exported)
