"""ExecuTorch programs (.pte), which XNNPACK runs: for apps on Android and iOS with torch's own runtime.

Needs `pip install 'ofa-toolkit[executorch]'`. A program takes one image and is float32. It holds no metadata,
so its manifest, `NAME.executorch.json`, is the only description. It has that name because `NAME.json` belongs
to `NAME.onnx`.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.errors import UserError
from export.formats.format import Array, Format, LoadedModel, Precision, Run
from export.formats.onnx import damaged, first_line
from export.formats.silence import silent

if TYPE_CHECKING:
    from torch import nn


class ExecuTorchFormat(Format):
    """.pte files for XNNPACK."""

    name = "executorch"
    suffix = ".pte"
    runtime = "ExecuTorch"
    package = "executorch"
    extra = "executorch"
    written_from = "module"
    one_image = True
    manifest_suffix = ".executorch.json"
    _resets = 0  # how often the threads of this process were replaced

    def write_module(self, module: "nn.Module", example: Array, path: Path, precision: Precision) -> None:
        """The module for one image, given to XNNPACK wherever that can take it."""
        # Imported here, since the process that measures memory reads this file and must not hold torch.
        import torch

        from engine.onnx_file import fold_batch_norm

        self.check_installed()
        with silent():
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower

            image = torch.from_numpy(example[:1])
            try:
                exported = torch.export.export(fold_batch_norm(module), (image,))
                edge = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
                program = edge.to_executorch()
            except RuntimeError as error:  # the classes of torch.export's errors are below it
                raise UserError(
                    f"torch cannot export {type(module).__name__} for ExecuTorch: {first_line(error)}; its "
                    "forward must not depend on the values of the image."
                ) from None
            path.write_bytes(bytes(program.buffer))

    def open(self, path: Path, exact: bool = True) -> Run:
        """The program in ExecuTorch on this CPU, one image at a time; it has one way to compute."""
        import torch

        method = self._method(path)
        _, wanted = _input_of(method)
        resets = self._resets

        def run(x: Array) -> Array:
            nonlocal method, resets
            # The program points to threads that are gone, see `load`, so it is loaded again.
            if resets != self._resets:
                method, resets = self._method(path), self._resets
            if list(x.shape[1:]) != wanted[1:]:
                raise UserError(f"The file takes {wanted}, but was given {list(x.shape)}; see its manifest.")
            outputs = []
            for i in range(len(x)):
                # ExecuTorch may reuse the memory of an output in the next run.
                outputs.append(method.execute([torch.from_numpy(x[i : i + 1])])[0].numpy().copy())
            return np.concatenate(outputs)

        return run

    def import_runtime(self) -> None:
        """Import torch and the runtime, which bring some hundred megabytes of their own."""
        with silent():
            import torch  # noqa: F401
            from executorch.runtime import Runtime

            Runtime.get()

    def load(self, path: Path, threads: int) -> LoadedModel:
        """The program with its own threads; all its images have one size."""
        import torch
        from executorch.extension.pybindings import portable_lib

        # There is no other way to set the number. A program keeps a pointer to the threads that were there
        # when it was loaded, so the new ones come first, and only where their number differs.
        if portable_lib._threadpool_get_thread_count() != threads:
            portable_lib._unsafe_reset_threadpool(threads)
            self._resets += 1
        method = self._method(path)
        dtype, shape = _input_of(method)
        if len(shape) != 4:
            raise ValueError("its input is not one image of a fixed size")
        generator = torch.Generator().manual_seed(0)
        if dtype == torch.uint8:
            image = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        else:
            image = torch.randn(shape, generator=generator)

        def run() -> Array:
            return method.execute([image])[0].numpy()

        return LoadedModel(shape, {}, run)

    def _method(self, path: Path) -> Any:
        """The function of a program.

        Raises:
            UserError: the file is missing or damaged, or ExecuTorch is not installed.
        """
        self.check_installed()
        if not path.is_file():
            raise UserError(
                f"There is no file '{path}'; write one with python -m export.onnx --target executorch."
            )
        try:
            with silent():  # the import warns that the runtime's interface may change
                from executorch.runtime import Runtime

                method = Runtime.get().load_program(path).load_method("forward")
        except Exception as error:  # its extension raises RuntimeError, or what the file's flatbuffer breaks
            raise UserError(damaged(path, self.runtime, first_line(error))) from None
        assert method is not None
        return method


def _input_of(method: Any) -> tuple[Any, list[int]]:
    """(torch type, shape) of the program's one input."""
    import torch

    info = method.metadata.input_tensor_meta(0)
    types = {0: torch.uint8, 6: torch.float32}  # numbers of ExecuTorch's ScalarType
    return types.get(info.dtype()), list(info.sizes())
