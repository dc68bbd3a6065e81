"""onnxruntime's own flat format (.ort), optimised for ARM: all that its small builds for phones read."""

from pathlib import Path
from typing import TYPE_CHECKING

from export.formats.onnx import OnnxFormat
from export.formats.silence import silent

if TYPE_CHECKING:
    import onnx

OPERATORS = ".required_operators.config"


class OrtFormat(OnnxFormat):
    """.ort files, which run as .onnx files do, and beside each the list of the operators that it needs."""

    name = "ort"
    suffix = ".ort"
    manifest_suffix = ".ort.json"
    side_suffixes = (OPERATORS,)

    def write_graph(self, model: "onnx.ModelProto", path: Path, chip: str | None = None) -> None:
        """Convert the graph with onnxruntime's tool; `path`'s folder must be a temporary one.

        The tool takes a file and writes files that are named after it, so these are renamed.
        """
        import onnx
        from onnxruntime.tools.convert_onnx_models_to_ort import OptimizationStyle, convert_onnx_models_to_ort

        source = path.with_suffix(".onnx")
        onnx.save(model, source)
        with silent():
            convert_onnx_models_to_ort(source, path.parent, [OptimizationStyle.Fixed], target_platform="arm")
        source.unlink()
        config = source.with_suffix(OPERATORS)
        lines = [f"# Generated from {path.name}"]
        for line in config.read_text(encoding="utf-8").splitlines():
            if not line.startswith("#"):  # the tool's comments name folders of this machine
                lines.append(line)
        config.write_text("\n".join([*lines, ""]), encoding="utf-8")

    def read_graph(self, path: Path) -> None:
        """None: onnx cannot read the flat format."""
        return None
