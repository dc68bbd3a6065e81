"""OpenVINO, a runtime of .onnx files.

OpenVINO reads .onnx as it is, so it has no format, no target and nothing to write. It stands in the table of
runtimes, where `python -m export.openvino` and the tests find how to run a file with it. Needs `pip install
'ofa-toolkit[openvino]'`.
"""

from pathlib import Path

import numpy as np

from engine.errors import UserError
from export.formats.format import Array, Run, Runtime
from export.formats.onnx import damaged, first_line


class OpenVinoRuntime(Runtime):
    """OpenVINO on this CPU, one image at a time."""

    runtime = "OpenVINO"
    package = "openvino"
    extra = "openvino"
    reads = ".onnx"

    def open(self, path: Path, exact: bool = True) -> Run:
        """The file compiled for this CPU.

        On CPUs with bfloat16 OpenVINO computes in that unless it is told not to. A difference of a percent
        then says nothing about the file, so `exact` asks for float32.
        """
        self.check_installed()
        if path.suffix != self.reads:
            raise UserError(f"OpenVINO runs {self.reads} files, and '{path}' is none; name one of those.")
        if not path.is_file():
            raise UserError(f"There is no file '{path}'; write one with python -m export.onnx.")
        import openvino

        hints = {"INFERENCE_PRECISION_HINT": "f32"} if exact else {}
        try:
            compiled = openvino.Core().compile_model(str(path), "CPU", hints)
        except RuntimeError as error:
            reason = first_line(error).replace(str(path), path.name)
            raise UserError(damaged(path, self.runtime, reason)) from None

        def run(x: Array) -> Array:
            # One at a time suits every file: some targets fix the batch to one image.
            return np.concatenate([compiled(x[i : i + 1])[0] for i in range(len(x))])

        return run
