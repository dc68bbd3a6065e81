"""The kinds of model files: a format is a file of this package and a line of `FORMATS`.

Export, verification, benchmark, bundle and demo know formats only through this table.
"""

from pathlib import Path

from engine.errors import UserError, nearest
from export.formats.executorch import ExecuTorchFormat
from export.formats.format import Format, Runtime
from export.formats.litert import LiteRtFormat
from export.formats.mlpackage import MlPackageFormat
from export.formats.mnn import MnnFormat
from export.formats.ncnn import NcnnFormat
from export.formats.onnx import OnnxFormat
from export.formats.openvino import OpenVinoRuntime
from export.formats.ort import OrtFormat
from export.formats.qnn import QnnFormat

# The plainest first: bundles list their files in this order, and examples take the first.
FORMATS: list[Format] = [
    OnnxFormat(),
    OrtFormat(),
    QnnFormat(),
    LiteRtFormat(),
    MlPackageFormat(),
    NcnnFormat(),
    MnnFormat(),
    ExecuTorchFormat(),
]
# Runtimes that have no format of their own and read files of one above.
OTHER_RUNTIMES: list[Runtime] = [OpenVinoRuntime()]


def find_format(name: str) -> Format:
    """The format of that name.

    Raises:
        UserError: there is none.
    """
    for member in FORMATS:
        if member.name == name:
            return member
    raise UserError(f"There is no format '{name}'; {nearest(name, [member.name for member in FORMATS])}")


def format_of(path: Path) -> Format:
    """The format of a model file, by how its name ends.

    Raises:
        UserError: its name ends in none of the known ways.
    """
    for member in FORMATS:
        if member.has(path):
            return member
    # No format is assumed for other names: such a file would fail somewhere in a runtime.
    raise UserError(f"'{path}' is not a model file: its name must end in {known_suffixes()}.")


def is_model_file(path: Path) -> bool:
    """Whether a file's name ends as that of a known format."""
    return any(member.has(path) for member in FORMATS)


def known_suffixes() -> str:
    """The endings of all formats, as in a sentence."""
    *others, last = [member.suffix for member in FORMATS]
    return f"{', '.join(others)} or {last}"
