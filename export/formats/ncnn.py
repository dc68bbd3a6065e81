"""ncnn models (.ncnn.param with .ncnn.bin): for apps with Tencent's small runtime, on ARM CPUs and Vulkan.

pnnx converts the target's ONNX graph. The first file holds the graph as text, the second one the weights; the
manifest, `NAME.ncnn.json`, covers both. Input and output are called in0 and out0 in the file, whatever the
graph called them. Needs `pip install 'ofa-toolkit[ncnn]'`.
"""

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.errors import UserError
from export.formats.format import Array, Format, LoadedModel, Run
from export.formats.onnx import damaged, first_line
from export.formats.silence import silent_native

if TYPE_CHECKING:
    import onnx

MAGIC = "7767517"  # the first line of every .param file
INPUT, OUTPUT = "in0", "out0"  # the names that pnnx gives


class NcnnFormat(Format):
    """.ncnn.param files, each with its .ncnn.bin."""

    name = "ncnn"
    suffix = ".ncnn.param"
    runtime = "ncnn"
    package = "ncnn"
    extra = "ncnn"
    writers = ("pnnx",)
    written_from = "graph"
    one_image = True
    side_suffixes = (".ncnn.bin",)
    part_suffixes = (".ncnn.bin",)
    manifest_suffix = ".ncnn.json"

    def write_graph(self, model: "onnx.ModelProto", path: Path, chip: str | None = None) -> None:
        """Convert the graph with pnnx; `path`'s folder must be a temporary one."""
        import onnx
        import pnnx

        image = model.graph.input[0].type.tensor_type
        if image.elem_type != onnx.TensorProto.FLOAT:
            raise UserError(
                "ncnn takes float32 images; leave out --bake, and give the mean and deviation of "
                "the manifest to ncnn's substract_mean_normalize."
            )
        shape = [side.dim_value for side in image.shape.dim]
        source = path.with_name("source.onnx")
        onnx.save(model, source)
        done = subprocess.run(
            # Weights of 32 bits: the default of 16 would be a float16 file.
            [pnnx.EXEC_PATH, source.name, f"inputshape={shape}".replace(" ", ""), "fp16=0"],
            cwd=path.parent,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        written = path.with_name("source.ncnn.param")
        if not written.is_file():
            last = (done.stderr.strip() or done.stdout.strip() or "no reason given").splitlines()[-1]
            raise UserError(f"pnnx cannot convert the graph: {last}.")
        path.write_text(_with_shape(written.read_text(encoding="utf-8"), shape), encoding="utf-8")
        path.with_name("source.ncnn.bin").rename(path.with_suffix(".bin"))
        for other in path.parent.glob("source*"):  # pnnx's own formats, and Python code that runs them
            other.unlink()

    def facts(self, path: Path) -> dict[str, Any]:
        """`names_in_file`, since `input` and `output` in the manifest have the graph's."""
        return {"names_in_file": {"input": INPUT, "output": OUTPUT}}

    def open(self, path: Path, exact: bool = True) -> Run:
        """The file in ncnn on this CPU, one image at a time.

        ncnn may store and compute in 16 bits where the CPU can, so `exact` forbids it.
        """
        import torch

        self.check_installed()
        if not path.is_file():
            raise UserError(f"There is no file '{path}'; write one with python -m export.onnx.")
        net = _net(path, torch.get_num_threads(), exact)

        def run(x: Array) -> Array:
            return np.concatenate([_run(net, image) for image in x])

        return run

    def load(self, path: Path, threads: int) -> LoadedModel:
        """The file as ncnn runs it by default."""
        net = _net(path, threads, exact=False)
        _, shape = net
        image = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)

        def run() -> Array:
            return _run(net, image[0])

        return LoadedModel(shape, {}, run)


def _with_shape(text: str, shape: list[int]) -> str:
    """The text of a .param file whose line of the input says its size, which pnnx leaves out."""
    _, channels, height, width = shape
    lines = text.splitlines()
    for i, line in enumerate(lines):
        if line.split()[:2] == ["Input", INPUT]:
            lines[i] = f"{line} 0={width} 1={height} 2={channels}"
    return "\n".join([*lines, ""])


def _image_shape(path: Path) -> list[int]:
    """The shape of the input for one image (1, C, H, W), from the text of a .param file."""
    for line in path.read_text(encoding="utf-8").splitlines():
        words = line.split()
        if words[:2] == ["Input", INPUT]:
            # Behind the name stand the numbers of inputs and outputs, and the output's name.
            sizes = dict(word.split("=") for word in words[5:])
            if {"0", "1", "2"} <= sizes.keys():
                return [1, int(sizes["2"]), int(sizes["1"]), int(sizes["0"])]
    raise ValueError("its input is not one image of a fixed size")


def _net(path: Path, threads: int, exact: bool) -> tuple[Any, list[int]]:
    """The network in ncnn, and the shape of its input.

    Raises:
        UserError: a part is missing or damaged.
    """
    weights = path.with_suffix(".bin")
    if not weights.is_file():
        raise UserError(
            f"'{path}' has no '{weights.name}' beside it, which holds its weights; copy that too."
        )
    # ncnn may end the process on a text that was cut off, so it is looked at before.
    reason = _damage(path.read_bytes())
    if reason:
        raise UserError(damaged(path, "ncnn", reason))
    try:
        shape = _image_shape(path)
    except ValueError as error:
        raise UserError(damaged(path, "ncnn", first_line(error))) from None
    with silent_native():
        import ncnn

        net = ncnn.Net()
        net.opt.num_threads = threads
        net.opt.use_vulkan_compute = False
        if exact:
            net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
            net.opt.use_bf16_storage = False
        graph_is_bad = net.load_param(str(path)) != 0
        weights_are_bad = not graph_is_bad and net.load_model(str(weights)) != 0
    if graph_is_bad:
        raise UserError(damaged(path, "ncnn", "its graph cannot be read"))
    if weights_are_bad:
        raise UserError(damaged(path, "ncnn", f"the weights in {weights.name} are not complete"))
    return net, shape


def _damage(content: bytes) -> str:
    """What shows that the text of a .param file is not complete; empty if it is."""
    lines = content.decode("utf-8", "replace").splitlines()
    counts = lines[1].split() if len(lines) > 1 else []
    if not lines or lines[0].strip() != MAGIC or len(counts) != 2 or not counts[0].isdigit():
        return "it does not begin as a .param file"
    if not content.endswith(b"\n"):
        return "it ends within a line"
    if len(lines) != 2 + int(counts[0]):
        return f"it has {len(lines) - 2} of {counts[0]} layers"
    return ""


def _run(opened: tuple[Any, list[int]], image: Array) -> Array:
    """The output (1, K) for one image (C, H, W)."""
    import ncnn

    net, shape = opened
    if list(image.shape) != shape[1:] or image.dtype != np.float32:
        raise UserError(
            f"The file takes float32 {shape}, but was given {image.dtype} {[1, *image.shape]}; see its "
            "manifest."
        )
    with net.create_extractor() as extractor:
        # A copy, since ncnn keeps a pointer to what it is given, and aligns rows in its own way.
        extractor.input(INPUT, ncnn.Mat(np.ascontiguousarray(image)).clone())
        _, output = extractor.extract(OUTPUT)
        return np.array(output)[None]
