"""ONNX files (.onnx), which onnxruntime runs: the format that every other one is compared with."""

import re
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort

from engine.errors import UserError
from engine.onnx_timing import bound_run, open_session, random_input
from engine.outside.documents import parse_json
from export.formats.format import Array, Format, LoadedModel, OperatorTime, Run

if TYPE_CHECKING:
    import onnx

# What a file is that has resize and crop in its graph (`--bake preprocessing`).
ANY_SIZE = "it takes images of any size"
PROFILED_RUNS = 10  # enough for a median that the slow first runs do not move
IMAGE_TYPES = ("tensor(float)", "tensor(float16)", "tensor(uint8)")
# From the type of a session's input to that of the array to give it.
INPUT_TYPES = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}


class OnnxFormat(Format):
    """.onnx files, which carry the manifest as metadata too."""

    name = "onnx"
    suffix = ".onnx"
    runtime = "onnxruntime"
    package = "onnxruntime"
    written_from = "graph"
    precisions = ("float32", "float16", "int8", "a16w8")
    in_example = True
    in_browser = True

    def version(self) -> str:
        """The version that the module itself reports."""
        # Builds for other devices, such as onnxruntime-gpu, are distributions of another name.
        return ort.__version__

    def write_graph(self, model: "onnx.ModelProto", path: Path, chip: str | None = None) -> None:
        """Save the graph as it is."""
        # Imported here, since the process that measures memory must not hold onnx.
        import onnx

        onnx.save(model, path)

    def open(self, path: Path, exact: bool = True) -> Run:
        """The file in onnxruntime on CPU; see `open_onnxruntime` for what exact means."""
        session = open_onnxruntime(path, exact)

        def run(x: Array) -> Array:
            return run_session(session, x)

        return run

    def load(self, path: Path, threads: int) -> LoadedModel:
        """The file in a session as it is timed: 8-bit products may saturate."""
        # The shape is not known before the file is open; this fixes a free batch axis to one image.
        session = open_session(path, [1, 1], threads)
        inputs = session.get_inputs()
        shape = [1, *inputs[0].shape[1:]]
        fixed = all(isinstance(side, int) for side in shape)
        if len(inputs) == 1 and len(shape) == 4 and not fixed:
            raise ValueError(ANY_SIZE)
        if len(inputs) != 1 or len(shape) != 4 or not fixed or inputs[0].type not in IMAGE_TYPES:
            raise ValueError("its input is not one image of a fixed size")
        feed = {inputs[0].name: random_input(session, shape)}

        def run() -> Array:
            return session.run(None, feed)[0]

        return LoadedModel(shape, session.get_modelmeta().custom_metadata_map, run)

    def timed_run(self, path: Path, shape: list[int], threads: int) -> Callable[[], object]:
        """A run without copies, as latency tables time it."""
        return bound_run(path, shape, threads)

    def profile(self, path: Path, shape: list[int], threads: int) -> list[OperatorTime]:
        """Time by operator: the sum over its nodes of each node's median in onnxruntime's profiler.

        The profiler makes all nodes a little slower and knows whole microseconds only. The shares are for
        reading; do not add them up.
        """
        with tempfile.TemporaryDirectory() as folder:
            session = open_session(path, shape, threads, Path(folder) / "profile")
            feed = {session.get_inputs()[0].name: random_input(session, shape)}
            for _ in range(PROFILED_RUNS):
                session.run(None, feed)
            events = parse_json(Path(session.end_profiling()).read_bytes())
        # The median over the runs of each node; the first runs are slower.
        times: dict[tuple[str, str], list[float]] = {}
        for event in events:
            # The other events are of the session, and of moving data to the kernels.
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                node = event["args"]["op_name"], event["args"]["node_index"]
                times.setdefault(node, []).append(event["dur"])
        spent: dict[str, list[float]] = {}
        for (operator, _), durations in times.items():
            spent.setdefault(operator, []).append(statistics.median(durations))
        rows = [(operator, len(nodes), sum(nodes)) for operator, nodes in spent.items()]
        return sorted(rows, key=_microseconds, reverse=True)

    def read_graph(self, path: Path) -> "onnx.ModelProto | None":
        """The graph, without weights that lie in other files."""
        import onnx

        return onnx.load(path, load_external_data=False)


def _microseconds(row: OperatorTime) -> float:
    return row[2]


def open_onnxruntime(path: Path, exact: bool = True) -> ort.InferenceSession:
    """A file (.onnx or .ort) in onnxruntime on CPU, with as many threads as torch has.

    Args:
        path: the model file.
        exact: sum 8-bit products without saturation. CPUs that have AVX2 and no VNNI saturate them otherwise,
            which is faster there and gives other numbers than every other device.

    Raises:
        UserError: the file is missing, truncated or not a model.
    """
    import torch  # here, since the process that measures memory imports this module and must not hold torch

    if not path.is_file():
        raise UserError(f"There is no file '{path}'; write one with python -m export.onnx.")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.log_severity_level = 4  # no log: errors are raised, and reported as one sentence below
    if exact:
        options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common class below Exception
        # Where exact sums are asked for, onnxruntime 1.32 makes the weights of some networks with LayerNorm
        # unsigned twice, and refuses its own result. Unoptimised, it computes such a graph in float32, which
        # is exact too.
        if exact and "replace the existing tensor" in str(error):
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        reason = first_line(error).replace(str(path), path.name)
        raise UserError(damaged(path, "onnxruntime", reason)) from None


def run_session(session: ort.InferenceSession, x: Array) -> Array:
    """Outputs (N, K) for inputs x; one image at a time if the file has no free batch axis.

    Raises:
        UserError: the images have another shape or type than the file takes.
    """
    (wanted,) = session.get_inputs()
    fits = len(wanted.shape) == x.ndim and INPUT_TYPES.get(wanted.type) == x.dtype
    if fits:
        for side, given in zip(wanted.shape[1:], x.shape[1:], strict=True):
            fits = fits and (isinstance(side, str) or side == given)
    if not fits:
        raise UserError(
            f"The file takes {wanted.type} {wanted.shape}, but was given {x.dtype} {list(x.shape)}; its "
            "metadata says how to prepare them."
        )
    # A free axis has a name. A fixed one is of one image: no target writes another number.
    parts = [x] if isinstance(wanted.shape[0], str) else [x[i : i + 1] for i in range(len(x))]
    return np.concatenate([session.run(None, {wanted.name: part})[0] for part in parts])


def first_line(error: Exception) -> str:
    """An error's message without a full stop, or the name of its class if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def damaged(path: Path, runtime: str, reason: str) -> str:
    """The sentence about a file that its runtime refuses."""
    return (
        f"'{path}' is not a model that {runtime} can run, or is truncated or damaged ({reason}); "
        "export it again."
    )


def plain_reason(error: Exception) -> str:
    """The first line of an error without onnxruntime's codes and the path of the file."""
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return (
        re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from .* failed:)?", "", first)
        .strip()
        .rstrip(".")
    )
