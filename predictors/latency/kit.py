"""What has to be timed to know a device: pieces and whole networks of a space as small ONNX files, and the
script that times them.

Weights do not change latency, so all files read theirs from one file of random numbers; a kit of thousands of
items is as large as one network. The side of a piece's input is left open in its file: the same file is timed
at every size.
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import nn

from engine import onnx_timing as bench
from engine.errors import UserError
from engine.onnx_file import write_onnx
from engine.run import atomic, read_json, write_json
from engine.seed import numpy_generator
from ofa.blocks.layer_specs import BlockSpec, HeadSpec, LayerSpec, StemSpec, layer_specs, tables
from ofa.space.space import Codes, Space, Stage
from ofa.subnet import Block, Bottleneck, ConvBN, DeepStem, Head

WEIGHTS = "weights.bin"
OVERHEAD = "overhead"
VERSION = 1
Item = dict[str, Any]


def structure(piece: LayerSpec) -> str:
    """What a piece computes, without the size of its map, as a name that is also a file's: fields that are
    on, joined by dashes."""
    match piece:
        case StemSpec():
            deep = f"-deep{piece.middle}x{piece.residual}" if piece.deep else ""
            return f"stem-{piece.channels}-{piece.width}-s{piece.stride}{deep}-{piece.act}"
        case BlockSpec():
            on = [name for name in ("expands", "se", "residual", "projects") if getattr(piece, name)]
            widths = f"{piece.inp}-{piece.hidden}-{piece.out}"
            return "-".join([piece.block, widths, f"k{piece.kernel}", f"s{piece.stride}", *on, piece.act])
        case HeadSpec():
            layers = [f"{piece.wide}{piece.act}"] * (piece.wide > 0) + [
                f"{piece.width}{'b' * piece.bias}"
            ] * (piece.width > 0)
            return "-".join(["head", str(piece.inp), *layers, str(piece.classes)])


def layer_name(piece: LayerSpec) -> str:
    """Structure and size."""
    return f"{structure(piece)}@{piece.size}"


def network_name(row: Codes) -> str:
    """One row of codes as the name of a whole network."""
    return f"net-{row.tobytes().hex()}"


def distinct_layers(space: Space, classes: int, channels: int) -> list[LayerSpec]:
    """Every piece that some architecture of the space contains, once."""
    found: dict[LayerSpec, None] = {}

    def note(piece: LayerSpec) -> tuple[int]:
        found[piece] = None
        return (0,)

    for _ in tables(space, classes, channels, note):
        pass
    return list(found)


class Alone(nn.Module):
    """A head and its classifier as one module."""

    def __init__(self, head: Head | None, features: int, classes: int):
        super().__init__()
        self.head, self.classifier = head, nn.Linear(features, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(x.mean((2, 3)) if self.head is None else self.head(x))


def module_of(space: Space, piece: LayerSpec) -> tuple[nn.Module, int]:
    """The piece as a torch module, and its input channels."""
    match piece:
        case StemSpec():
            if piece.deep:
                return DeepStem(
                    space, piece.channels, piece.width, piece.middle, piece.residual
                ), piece.channels
            return ConvBN(
                space, piece.channels, piece.width, 3, piece.stride, act=space.stem.act
            ), piece.channels
        case BlockSpec():
            ratio = piece.hidden / (piece.out if piece.block == "bottleneck" else piece.inp)
            source = next(
                s for s in space.stages if (s.block, s.se, s.act) == (piece.block, piece.se, piece.act)
            )
            stage = source.model_copy(update={"expand": (2.0,) if piece.expands else (1,)})
            return _block(space, stage, piece, ratio), piece.inp
        case HeadSpec():
            head = Head(space, space.head, piece.inp, piece.width or piece.wide) if space.head else None
            return Alone(head, piece.width or piece.wide or piece.inp, piece.classes), piece.inp


def _block(space: Space, stage: Stage, piece: BlockSpec, ratio: float) -> nn.Module:
    kind = Bottleneck if piece.block == "bottleneck" else Block
    return kind(space, stage, piece.inp, piece.out, piece.kernel, ratio, piece.stride, piece.projects)


def export_kit(
    space: Space,
    pieces: Sequence[LayerSpec],
    networks_NF: Codes,
    classes: int,
    channels: int,
    folder: Path,
    advance: Callable[[str], None],
) -> None:
    """Write the files, manifest.json and bench.py; pieces already there from an interrupted start are kept.
    advance(note) per structure.

    pieces: what to time by itself; those of `networks_NF` are exported, too, since networks are put together
        from them.

    Raises:
        UserError: the folder holds a kit of something else.
    """
    nets = [(network_name(row), layer_specs(space, row, classes, channels)) for row in networks_NF]
    items = [{"name": OVERHEAD, "file": f"{OVERHEAD}.onnx", "shape": [1, 1, 1, 1]}] if pieces else []
    items += [
        {"name": layer_name(p), "file": f"{structure(p)}.onnx", "shape": [1, _channels(p), p.size, p.size]}
        for p in pieces
    ]
    items += [
        {"name": name, "file": f"{name}.onnx", "shape": [1, channels, net[0].size, net[0].size]}
        for name, net in nets
    ]
    manifest, path = (
        {"version": VERSION, "space": space.name, "classes": classes, "items": items},
        folder / "manifest.json",
    )
    if path.exists() and read_json(path) != manifest:
        raise UserError(f"Folder '{folder}' holds a kit of other items; remove it, or name another.")
    folder.mkdir(parents=True, exist_ok=True)
    needed = {structure(p): p for p in [*pieces, *(p for _, net in nets for p in net)]}
    for name, piece in needed.items():
        if not (folder / f"{name}.onnx").exists():
            export_layer(space, piece, folder / f"{name}.onnx")
        advance(name)
    largest = max(_lay_out(onnx.load(folder / f"{name}.onnx", load_external_data=False)) for name in needed)
    for name, net in nets:
        largest = max(largest, join([folder / f"{structure(p)}.onnx" for p in net], folder / f"{name}.onnx"))
    noise = numpy_generator(0, "weights").standard_normal(largest // 4 + 1, dtype=np.float32)
    (folder / WEIGHTS).write_bytes((0.1 * noise).tobytes())
    one = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, 1, 1])
    two = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 1, 1, 1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], OVERHEAD, [one], [two])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10),
        folder / f"{OVERHEAD}.onnx",
    )
    shutil.copyfile(bench.__file__, folder / "bench.py")
    write_json(path, manifest)


def _channels(piece: LayerSpec) -> int:
    return piece.channels if isinstance(piece, StemSpec) else piece.inp


def export_layer(space: Space, piece: LayerSpec, path: Path) -> None:
    """The piece with an open batch and side; its weights refer to the file of random numbers beside it."""
    module, channels = module_of(space, piece)
    with atomic(
        path
    ) as temporary:  # a file under its own name is complete: an interrupted export continues after it
        write_onnx(module.eval(), torch.zeros(2, channels, piece.size, piece.size), temporary, {})
        model = onnx.load(temporary)
        del model.graph.value_info[:]
        for side in model.graph.input[0].type.tensor_type.shape.dim[2:]:
            side.dim_param = "side"
        for place, axis in enumerate(model.graph.output[0].type.tensor_type.shape.dim[2:]):
            axis.dim_param = f"out{place}"
        _lay_out(model)
        onnx.save(model, temporary)


def _lay_out(model: onnx.ModelProto) -> int:
    """Point all weights of a model at consecutive places of the file of random numbers; returns the bytes it
    needs."""
    offset = 0
    for tensor in model.graph.initializer:
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


def join(parts: Sequence[Path], path: Path) -> int:
    """One model that runs the models of `parts` one after the other; returns the bytes of its weights."""
    whole: onnx.ModelProto | None = None
    for i, part in enumerate(parts):
        model = onnx.compose.add_prefix(
            onnx.load(part, load_external_data=False), f"{i}/", rename_inputs=True
        )
        for edge in (model.graph.input[0], model.graph.output[0]):
            for axis in edge.type.tensor_type.shape.dim:
                axis.dim_param = axis.dim_param.split("/")[-1]
        if whole is None:
            whole = model
            continue
        before, after = whole.graph.output[0].name, model.graph.input[0].name
        for node in model.graph.node:
            node.input[:] = [before if name == after else name for name in node.input]
        whole.graph.node.extend(model.graph.node)
        whole.graph.initializer.extend(model.graph.initializer)
        whole.graph.output[0].CopyFrom(model.graph.output[0])
    assert whole is not None
    size = _lay_out(whole)
    onnx.save(whole, path)
    return size
