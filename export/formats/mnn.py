"""MNN models (.mnn): for apps with Alibaba's runtime, on ARM CPUs and phones' GPUs.

Its converter reads the target's ONNX graph. It is called below the Python module of its command: that module
installs a package for usage reports into whichever Python is first in PATH, and sends them. The manifest is
`NAME.mnn.json`. Needs `pip install 'ofa-toolkit[mnn]'`.
"""

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.errors import UserError
from export.formats.format import Array, Format, LoadedModel, Run
from export.formats.onnx import damaged
from export.formats.silence import silent_native

if TYPE_CHECKING:
    import onnx

# The name that the converter gives to each model anew.
RANDOM_NAME = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


class MnnFormat(Format):
    """.mnn files."""

    name = "mnn"
    suffix = ".mnn"
    runtime = "MNN"
    package = "MNN"
    extra = "mnn"
    written_from = "graph"
    one_image = True
    manifest_suffix = ".mnn.json"

    def write_graph(self, model: "onnx.ModelProto", path: Path, chip: str | None = None) -> None:
        """Convert the graph; `path`'s folder must be a temporary one."""
        import onnx

        from engine.onnx_file import without_metadata

        if model.graph.input[0].type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
            raise UserError(
                "MNN takes float32 images; leave out --bake, and give the mean and deviation of "
                "the manifest to MNN's ImageProcess."
            )
        source = path.with_suffix(".source.onnx")
        # Metadata would be in the file, where no function of MNN reads it.
        onnx.save(without_metadata(model), source)
        with silent_native():
            import _tools  # MNN's own name for its converters

            words = ["-f", "ONNX", "--modelFile", str(source), "--MNNModel", str(path), "--bizCode", "ofa"]
            _tools.mnnconvert(["mnnconvert", *words])
        source.unlink()
        if not path.is_file():
            raise UserError("MNN cannot convert the graph.")
        path.write_bytes(_with_fixed_name(path.read_bytes()))

    def open(self, path: Path, exact: bool = True) -> Run:
        """The file in MNN on this CPU, one image at a time.

        MNN may compute in 16 bits where the CPU can; `exact` asks for 32.
        """
        import torch

        self.check_installed()
        if not path.is_file():
            raise UserError(f"There is no file '{path}'; write one with python -m export.onnx.")
        opened = _Opened(path, torch.get_num_threads(), exact)

        def run(x: Array) -> Array:
            return np.concatenate([opened.run(x[i : i + 1]) for i in range(len(x))])

        return run

    def import_runtime(self) -> None:
        """Import MNN."""
        with silent_native():
            import MNN  # noqa: F401

    def load(self, path: Path, threads: int) -> LoadedModel:
        """The file as MNN runs it by default."""
        opened = _Opened(path, threads, exact=False)
        if len(opened.shape) != 4:
            raise ValueError("its input is not one image of a fixed size")
        image = np.random.default_rng(0).standard_normal(opened.shape, dtype=np.float32)

        def run() -> Array:
            return opened.run(image)

        return LoadedModel(opened.shape, {}, run)


class _Opened:
    """A file in MNN, with a session for one image.

    Raises:
        UserError: it is damaged.
    """

    def __init__(self, path: Path, threads: int, exact: bool):
        settings = {"backend": "CPU", "numThread": threads, "precision": "high" if exact else "normal"}
        with silent_native():
            import MNN

            self.mnn = MNN
            try:
                self.interpreter = MNN.Interpreter(str(path))
            except Exception:  # it raises that very class; its reason goes to the console only
                raise UserError(damaged(path, "MNN", "it is no complete model")) from None
            self.session = self.interpreter.createSession(settings)
        self.input = self.interpreter.getSessionInput(self.session)
        self.shape = [int(side) for side in self.input.getShape()]

    def run(self, image: Array) -> Array:
        """The output (1, K) for one image (1, C, H, W)."""
        if list(image.shape) != self.shape or image.dtype != np.float32:
            raise UserError(
                f"The file takes float32 {self.shape}, but was given {image.dtype} {list(image.shape)}; see "
                "its manifest."
            )
        self.input.copyFrom(self._tensor(np.ascontiguousarray(image)))
        self.interpreter.runSession(self.session)
        output = self.interpreter.getSessionOutput(self.session)
        shape = output.getShape()
        host = self._tensor(np.zeros(shape, np.float32))
        output.copyToHostTensor(host)
        return np.array(host.getNumpyData(), np.float32).reshape(shape)

    def _tensor(self, values: Array) -> Any:
        """An array as a tensor in torch's layout; the session's own are packed for its kernels."""
        kind, layout = self.mnn.Halide_Type_Float, self.mnn.Tensor_DimensionType_Caffe
        return self.mnn.Tensor(values.shape, kind, values, layout)


def _with_fixed_name(content: bytes) -> bytes:
    """The file with a name that follows from its content, so that the same export gives the same bytes."""
    bare = RANDOM_NAME.sub(b"0" * 36, content, count=1)
    words = hashlib.sha256(bare).hexdigest()
    name = "-".join([words[:8], words[8:12], words[12:16], words[16:20], words[20:32]])
    return RANDOM_NAME.sub(name.encode(), content, count=1)
