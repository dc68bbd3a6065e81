"""Exported files in OpenVINO, compared with onnxruntime. OpenVINO reads .onnx as it is, so there is no file
of its own to write.

Needs `pip install 'ofa-toolkit[openvino]'`. On CPUs with bfloat16 OpenVINO computes in that unless told not
to: a difference of a percent then says nothing about the file. So the comparison asks for float32, and
reports the default beside it.
"""

import importlib.util
from pathlib import Path

import numpy as np
from pydantic import Field
from pydantic_settings import CliPositionalArg
from rich.table import Table

from engine.command.cli import Command, main
from engine.command.table import show
from engine.errors import UserError
from engine.seed import numpy_generator
from export.graph import Array
from export.manifest import read_manifest
from export.verify import TOLERANCE, open_session, run_file

INT8_TOLERANCE = 0.1  # two runtimes round differently at each layer: here 1 to 5%


class OpenVINO(Command):
    """Run exported .onnx files in OpenVINO on this CPU and compare the outputs with onnxruntime's, on random
    inputs.

    examples:
      python -m export.openvino runs/supernet/export/600M.onnx
    """

    files: CliPositionalArg[list[Path]] = Field(description=".onnx files with their manifests")
    images: int = Field(16, ge=1, description="random inputs")

    def execute(self) -> int:
        """Compare each, table, exit status."""
        _installed()
        table = Table("file", "float32", "as OpenVINO chooses", "verdict")
        failed = 0
        for path in self.files:
            manifest = read_manifest(path)
            x = _inputs(manifest.input.shape, manifest.input.dtype, self.images)
            wanted = run_file(open_session(path), x)
            exact, chosen = (_difference(run_openvino(path, x, force), wanted) for force in (True, False))
            limit = TOLERANCE if manifest.precision == "float32" else INT8_TOLERANCE
            failed += exact > limit
            table.add_row(
                path.name,
                f"{exact:.1e}",
                f"{chosen:.1e}",
                "equal" if exact <= limit else f"differs by more than {limit:g}",
            )
        show(table)
        print("differences: largest of any output, relative to the largest output of onnxruntime")
        return 1 if failed else 0


def run_openvino(path: Path, x: Array, force_float32: bool = True) -> Array:
    """Outputs (N, K) of the file for inputs x, one image at a time."""
    _installed()
    import openvino

    hints = {"INFERENCE_PRECISION_HINT": "f32"} if force_float32 else {}
    compiled = openvino.Core().compile_model(str(path), "CPU", hints)
    return np.concatenate([compiled(x[i : i + 1])[0] for i in range(len(x))])


def _inputs(shape: tuple[int | str, ...], dtype: str, images: int) -> Array:
    rng, size = numpy_generator(0, "openvino"), (images, *(int(axis) for axis in shape[1:]))
    return (
        rng.integers(0, 256, size, dtype=np.uint8)
        if dtype == "uint8"
        else rng.standard_normal(size, dtype=np.float32)
    )


def _difference(got: Array, wanted: Array) -> float:
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


def _installed() -> None:
    if importlib.util.find_spec("openvino") is None:
        raise UserError("OpenVINO is not installed; run pip install 'ofa-toolkit[openvino]'.")


if __name__ == "__main__":
    main(OpenVINO)
