"""Graphs compiled ahead of time for Qualcomm's NPU (.qnn): what onnxruntime loads on a Snapdragon at once.

A `.qnn` file is an ONNX file whose graph is an `EPContext` node with the NPU's program in it; onnxruntime
with its QNN provider reads it under any name. It is for one chip. The same package compiles on Linux for x86
and emulates the NPU's arithmetic there, so that the file is compared with torch in that arithmetic;
only its time tells nothing.

Needs `pip install 'ofa-toolkit[qnn]'`.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnxruntime as ort

from engine.errors import UserError
from export.formats.format import Array, Format, LoadedModel, Run
from export.formats.onnx import damaged, first_line, run_session
from export.formats.silence import silent_native

if TYPE_CHECKING:
    import onnx

PROVIDER = "QNNExecutionProvider"
# Chips whose name the compiler takes. The number of the NPU's generation is in the manifest.
CHIPS = ("SM8650", "SM8350", "SM8450", "SM8550", "SM8750", "SM8850")
# What the compiler writes into a program about its chip.
CHIP_IN_FILE = re.compile(rb"soc_type=(\w+);arch=(\d+)")


class QnnFormat(Format):
    """.qnn files for Hexagon NPUs."""

    name = "qnn"
    suffix = ".qnn"
    runtime = "onnxruntime with QNN"
    package = "onnxruntime_qnn"
    extra = "qnn"
    written_from = "graph"
    # The NPU has no float32: it computes float graphs in float16.
    precisions = ("float16", "int8", "a16w8")
    one_image = True
    manifest_suffix = ".context.json"  # NAME.qnn.json belongs to NAME.qnn.onnx
    chips = CHIPS

    def write_graph(self, model: "onnx.ModelProto", path: Path, chip: str | None = None) -> None:
        """Compile the graph for a chip.

        Raises:
            UserError: the compiler takes no node of the graph, or fails.
        """
        import onnx

        from engine.onnx_file import without_metadata

        compiled = path.with_suffix(".compiled.onnx")
        # The metadata goes to the compiled file: tools around the compiler fail on files that have some.
        bare = without_metadata(model)
        try:
            # Bytes, since the program is named after the path of a file, and the same export shall give the
            # same bytes. The session is made only for its side effect, the compiled file.
            wanted = {"soc_model": chip or CHIPS[0]}
            self._session(bare.SerializeToString(), wanted, {"ep.context_file_path": str(compiled)})
        except Exception as error:  # onnxruntime's errors have no common class below Exception
            raise UserError(
                f"QNN cannot compile the graph for {chip or CHIPS[0]}: {first_line(error)}."
            ) from None
        if not compiled.is_file():
            raise UserError(f"QNN takes no node of the graph for {chip or CHIPS[0]}.")
        result = onnx.load(compiled)
        result.metadata_props.extend(model.metadata_props)
        onnx.save(result, path)
        compiled.unlink()

    def open(self, path: Path, exact: bool = True) -> Run:
        """The file in the emulator of its NPU; it has one way to compute."""
        self.check_installed()
        if not path.is_file():
            raise UserError(f"There is no file '{path}'; write one with python -m export.onnx.")
        try:
            session = self._session(path.read_bytes(), {}, {})
        except Exception as error:
            raise UserError(
                damaged(path, self.runtime, first_line(error).replace(str(path), path.name))
            ) from None

        def run(x: Array) -> Array:
            return run_session(session, x)

        return run

    def load(self, path: Path, threads: int) -> LoadedModel:
        """Never: an emulator's time and memory are not the NPU's."""
        raise ValueError(self.not_timed_here())

    def versions(self) -> dict[str, str]:
        """The provider's version and onnxruntime's."""
        return super().versions() | {"onnxruntime": ort.__version__}

    def not_timed_here(self) -> str:
        """The chip is emulated."""
        return "an emulator of the NPU runs it here, whose time and memory are not the phone's"

    def facts(self, path: Path) -> dict[str, Any]:
        """`compiled`: for which chip, and whether the whole graph became one program of the NPU."""
        import onnx

        found = CHIP_IN_FILE.search(path.read_bytes())
        nodes = [node.op_type for node in onnx.load(path).graph.node]
        outside = sorted(kind for kind in nodes if kind != "EPContext")
        return {
            "compiled": {
                "chip": found[1].decode() if found else None,
                "npu": f"v{found[2].decode()}" if found else None,
                "contexts": nodes.count("EPContext"),
                "outside": outside,
            }
        }

    def _session(
        self, model: bytes, options: dict[str, str], entries: dict[str, str]
    ) -> ort.InferenceSession:
        """A session on the NPU's emulator, which compiles the model unless it is compiled already."""
        import onnxruntime_qnn

        with silent_native():
            if not _devices():
                ort.register_execution_provider_library(PROVIDER, onnxruntime_qnn.get_library_path())
            settings = ort.SessionOptions()
            settings.log_severity_level = 4
            if entries:
                # In the file itself, so that it is one file; otherwise the program lies in a .bin beside it.
                for key, value in (
                    entries | {"ep.context_enable": "1", "ep.context_embed_mode": "1"}
                ).items():
                    settings.add_session_config_entry(key, value)
            # With "0" the first and the last step, float32 to integers and back, are the NPU's too.
            options = options | {
                "backend_path": onnxruntime_qnn.get_qnn_htp_path(),
                "offload_graph_io_quantization": "0",
            }
            settings.add_provider_for_devices(_devices()[:1], options)
            return ort.InferenceSession(model, settings)


def _devices() -> list[Any]:
    """The devices of the provider, once its library is registered."""
    return [device for device in ort.get_ep_devices() if device.ep_name == PROVIDER]
