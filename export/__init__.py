"""From a chosen network to a file that a device runs, proved equal to the torch model. `export.to_onnx` does
it for any classifier."""

from typing import TYPE_CHECKING, Any

from engine.command.start import start

if TYPE_CHECKING:
    from export.api import to_onnx
    from export.pipeline import Bake

__all__ = ["Bake", "to_onnx"]

start()


def __getattr__(name: str) -> Any:
    """The library on first use: importing the package imports neither torch nor onnx."""
    if name == "to_onnx":
        from export.api import to_onnx

        return to_onnx
    if name == "Bake":
        from export.pipeline import Bake

        return Bake
    raise AttributeError(f"module 'export' has no attribute '{name}'")
