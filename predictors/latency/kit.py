"""What is timed to know a device: layers and networks of a space as small ONNX files, and a script.

Weights do not change latency, so all files read theirs from one file of random numbers: a kit of thousands of
items is as large as one network. The side of a layer's input is left open in its file, so that the same file
is timed at every size.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper

from engine import onnx_timing as bench
from engine.blocks.layers import LayerSpec, layer_name, plain_layer, structure
from engine.blocks.stem import StemSpec
from engine.errors import UserError
from engine.onnx_file import IR_VERSION, OPSET
from engine.run import read_json, write_json
from engine.seed import numpy_generator
from ofa.layers import cost_tables, layer_specs
from ofa.space.codes import Codes, decode
from ofa.space.space import Space
from predictors.latency import adb
from predictors.latency.graph import layer_graph

WEIGHTS = "weights.bin"
OVERHEAD = "overhead"  # the item that does almost nothing: what a run of a session costs by itself
VERSION = 1
Item = dict[str, Any]


def network_name(row: Codes) -> str:
    """The name of a whole network as an item: its row of codes in hexadecimal."""
    return f"net-{row.tobytes().hex()}"


def distinct_layers(space: Space, classes: int, channels: int) -> list[LayerSpec]:
    """Every layer that some architecture of the space contains, once."""
    found: dict[LayerSpec, None] = {}

    def note(layer: LayerSpec) -> tuple[int]:
        found[layer] = None
        return (0,)

    # `cost_tables` asks for the cost of every layer, and nothing else lists them.
    for _ in cost_tables(space, classes, channels, note):
        pass
    return list(found)


class KitSubject(NamedTuple):
    """What a kit is of.

    Args:
        space: its name.
        bn_eps: epsilon of BatchNorm.
        classes: outputs of the classifier.
        channels: of the input images.
    """

    space: str
    bn_eps: float
    classes: int
    channels: int


def export_kit(
    space: Space,
    layers: Sequence[LayerSpec],
    networks_NF: Codes,
    classes: int,
    channels: int,
    folder: Path,
    advance: Callable[[str], None],
) -> None:
    """Write the ONNX files, manifest.json and the scripts that time them.

    Args:
        space: of the layers and networks.
        layers: what to time by itself.
        networks_NF: encoded architectures to time as a whole. Their layers are exported too, since networks
            are put together from them.
        classes: outputs of the classifier.
        channels: of the input images.
        folder: where to write.
        advance: is called with the name of each structure that is written.

    Raises:
        UserError: the folder holds a kit of something else.
    """
    networks: dict[str, list[LayerSpec]] = {}
    for row in networks_NF:
        networks[network_name(row)] = layer_specs(space, decode(space, row), classes, channels)
    subject = KitSubject(space.name, space.bn_eps, classes, channels)
    write_kit(subject, layers, networks, folder, advance)


def write_kit(
    subject: KitSubject,
    layers: Sequence[LayerSpec],
    networks: Mapping[str, list[LayerSpec]],
    folder: Path,
    advance: Callable[[str], None],
) -> None:
    """Write the files of a kit, as `export_kit`, of layers and networks of any space.

    Args:
        subject: what they are of.
        layers: what to time by itself.
        networks: what to time as a whole, by name.
        folder: where to write.
        advance: is called with the name of each structure that is written.

    Raises:
        UserError: the folder holds a kit of something else.
    """
    channels = subject.channels
    items = _items(layers, networks, channels)
    manifest = {"version": VERSION, "space": subject.space, "classes": subject.classes, "items": items}
    path = folder / "manifest.json"
    if path.exists() and read_json(path) != manifest:
        raise UserError(f"Folder '{folder}' holds a kit of other items; remove it, or name another.")
    folder.mkdir(parents=True, exist_ok=True)
    # One file for each structure: bench.py gives the size of the map when it times the file.
    needed = {structure(layer): layer for layer in layers}
    for parts in networks.values():
        needed.update({structure(layer): layer for layer in parts})
    models: dict[str, onnx.ModelProto] = {}
    # All models share one file of weights, each of them reads it from its start, so it is as long as the
    # longest of them needs.
    bytes_of_weights = []
    for name, layer in needed.items():
        module = plain_layer(layer, subject.bn_eps)
        models[name] = layer_graph(module, _input_channels(layer), layer.size)
        bytes_of_weights.append(_lay_out_weights(models[name]))
        onnx.save(models[name], folder / f"{name}.onnx")
        advance(name)
    for name, parts in networks.items():
        whole = join_models([models[structure(layer)] for layer in parts])
        bytes_of_weights.append(_lay_out_weights(whole))
        onnx.save(whole, folder / f"{name}.onnx")
    _write_weights(folder / WEIGHTS, max(bytes_of_weights))
    _write_overhead(folder / f"{OVERHEAD}.onnx")
    shutil.copyfile(bench.__file__, folder / "bench.py")
    shutil.copyfile(adb.__file__, folder / "adb.py")
    # The manifest comes last: bench.py starts with it, so the files that it lists are complete.
    write_json(path, manifest)


def _items(layers: Sequence[LayerSpec], networks: Mapping[str, list[LayerSpec]], channels: int) -> list[Item]:
    """What bench.py times: the overhead of a run, then layers, then whole networks by their names."""
    items: list[Item] = []
    if layers:
        items.append({"name": OVERHEAD, "file": f"{OVERHEAD}.onnx", "shape": [1, 1, 1, 1]})
    for layer in layers:
        shape = [1, _input_channels(layer), layer.size, layer.size]
        items.append({"name": layer_name(layer), "file": f"{structure(layer)}.onnx", "shape": shape})
    for name, parts in networks.items():
        shape = [1, channels, parts[0].size, parts[0].size]
        items.append({"name": name, "file": f"{name}.onnx", "shape": shape})
    return items


def _input_channels(layer: LayerSpec) -> int:
    return layer.channels if isinstance(layer, StemSpec) else layer.inp


def _write_weights(path: Path, size: int) -> None:
    """At least `size` bytes of random float32 numbers."""
    noise = numpy_generator(0, "weights").standard_normal(size // 4 + 1, dtype=np.float32)
    path.write_bytes((0.1 * noise).tobytes())


def _write_overhead(path: Path) -> None:
    """A network of one ReLU on one number."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, 1, 1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 1, 1, 1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], OVERHEAD, [x], [y])
    # The same versions as exported files have, which runtimes in the field can read.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.save(model, path)


def _lay_out_weights(model: onnx.ModelProto) -> int:
    """Point all weights of a model at consecutive places of the file of random numbers.

    Returns:
        How many bytes of the file the model reads.
    """
    offset = 0
    for tensor in model.graph.initializer:
        # Shapes and single numbers stay in the model: random ones would not run.
        if tensor.data_type != TensorProto.FLOAT or not tensor.dims:
            continue
        length = 4 * int(np.prod(tensor.dims))
        tensor.ClearField("raw_data")
        del tensor.external_data[:]
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", WEIGHTS), ("offset", str(offset)), ("length", str(length))):
            tensor.external_data.add(key=key, value=value)
        offset += length
    return offset


def join_models(models: Sequence[onnx.ModelProto]) -> onnx.ModelProto:
    """One model that runs these models one after the other. Its weights have places of their own later."""
    whole = onnx.ModelProto()
    for i, model in enumerate(models):
        # The same names occur in every model, so each gets a prefix of its own.
        model = onnx.compose.add_prefix(model, f"{i}/", rename_inputs=True)
        # The free axes keep the names that bench.py pins.
        for edge in (model.graph.input[0], model.graph.output[0]):
            for axis in edge.type.tensor_type.shape.dim:
                axis.dim_param = axis.dim_param.split("/")[-1]
        if i == 0:
            whole = model
            continue
        # The input of this model becomes the output of those before it.
        before, after = whole.graph.output[0].name, model.graph.input[0].name
        for node in model.graph.node:
            node.input[:] = [before if name == after else name for name in node.input]
        whole.graph.node.extend(model.graph.node)
        whole.graph.initializer.extend(model.graph.initializer)
        whole.graph.output[0].CopyFrom(model.graph.output[0])
    return whole
