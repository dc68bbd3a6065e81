"""Exported .onnx files in OpenVINO, compared with onnxruntime.

Needs `pip install 'ofa-toolkit[openvino]'`. The comparison that decides asks OpenVINO for float32. Beside it
stands one in the precision that OpenVINO chooses by itself, which is bfloat16 on CPUs that have it.
"""

from pathlib import Path

import numpy as np
from pydantic import Field
from pydantic_settings import CliPositionalArg
from rich.table import Table

from engine.command.cli import Command, main
from engine.command.table import show
from engine.errors import UserError
from engine.seed import numpy_generator
from export.formats import format_of
from export.formats.format import Array
from export.formats.openvino import OpenVinoRuntime
from export.manifest import read_manifest
from export.verify import TOLERANCE

# Two runtimes round 8-bit and 16-bit numbers differently at each layer: the differences seen were 1 to 5%.
ROUNDING_TOLERANCE = 0.1


class OpenVINO(Command):
    """Run exported .onnx files in OpenVINO on this CPU, and compare its outputs with onnxruntime's.

    The inputs are random.

    examples:
      python -m export.openvino runs/supernet/export/600M.onnx
    """

    files: CliPositionalArg[list[Path]] = Field(description=".onnx files with their manifests")
    images: int = Field(16, ge=1, description="random inputs")

    def execute(self) -> int:
        """Compare every file, print the table, and return the exit status."""
        openvino = OpenVinoRuntime()
        openvino.check_installed()
        table = Table("file", "float32", "as OpenVINO chooses", "verdict")
        failed = 0
        for path in self.files:
            manifest = read_manifest(path)
            if any(isinstance(axis, str) for axis in manifest.input.shape[1:]):
                raise UserError(
                    f"'{path}' takes images of any size, and random ones are of a fixed size; compare a file "
                    "that was exported without --bake preprocessing."
                )
            x = _inputs(manifest.input.shape, manifest.input.dtype, self.images)
            in_openvino = openvino.open(path)
            wanted = format_of(path).open(path)(x)
            in_float32 = _difference(in_openvino(x), wanted)
            as_it_chooses = _difference(openvino.open(path, exact=False)(x), wanted)
            limit = TOLERANCE if manifest.precision == "float32" else ROUNDING_TOLERANCE
            verdict = "equal" if in_float32 <= limit else f"differs by more than {limit:g}"
            failed += in_float32 > limit  # the precision that OpenVINO chooses is reported, not judged
            table.add_row(path.name, f"{in_float32:.1e}", f"{as_it_chooses:.1e}", verdict)
        show(table)
        print("differences: largest of any output, relative to the largest output of onnxruntime")
        return 1 if failed else 0


def _inputs(shape: tuple[int | str, ...], dtype: str, images: int) -> Array:
    """Random inputs of a file's type; `shape` has the batch axis first."""
    rng = numpy_generator(0, "openvino")
    size = images, *(int(axis) for axis in shape[1:])
    if dtype == "uint8":
        return rng.integers(0, 256, size, dtype=np.uint8)
    return rng.standard_normal(size, dtype=np.float32)


def _difference(got: Array, wanted: Array) -> float:
    """Largest difference of any output, relative to the largest output that is wanted."""
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


if __name__ == "__main__":
    main(OpenVINO)
