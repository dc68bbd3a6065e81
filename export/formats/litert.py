"""LiteRT models (.tflite): for apps with Google's runtime on Android, and on iOS and Linux boards.

Written from the torch module by litert-torch; 8 bits by ai-edge-quantizer. A file takes one image, in the
layout that torch has unless pixels are baked in. It holds no metadata, so its manifest, `NAME.litert.json`,
is the only description. Needs `pip install 'ofa-toolkit[litert]'`, best in an environment of its own.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.errors import UserError
from export.formats.format import Array, Format, LoadedModel, Precision, Quantization, Run
from export.formats.onnx import damaged, first_line
from export.formats.silence import silent_native

if TYPE_CHECKING:
    from torch import nn

SIGNATURE = "serving_default"  # the name that litert-torch gives to a module's forward


class LiteRtFormat(Format):
    """.tflite files."""

    name = "litert"
    suffix = ".tflite"
    runtime = "LiteRT"
    package = "ai_edge_litert"
    extra = "litert"
    writers = ("litert_torch", "ai_edge_quantizer")
    written_from = "module"
    precisions = ("float32", "int8", "a16w8")
    one_image = True
    manifest_suffix = ".litert.json"

    def write_module(self, module: "nn.Module", example: Array, path: Path, precision: Precision) -> None:
        """Convert the module for one image."""
        # Imported here, since the process that measures memory reads this file and must not hold torch.
        import torch

        from engine.onnx_file import fold_batch_norm

        with silent_native():
            import litert_torch

            try:
                model = litert_torch.convert(fold_batch_norm(module), (torch.from_numpy(example[:1]),))
            except Exception as error:  # torch.export's, and whatever the converter's passes raise
                raise UserError(
                    f"litert-torch cannot convert {type(module).__name__}: {first_line(error)}; its forward "
                    "must not depend on the values of the image."
                ) from None
            model.export(str(path))

    def write_quantized(
        self, module: "nn.Module", calibration: Sequence[Array], path: Path, scheme: Quantization
    ) -> None:
        """Convert the module, then its operators to integers; input and output stay as they are."""
        in_float = path.with_suffix(".float.tflite")
        self.write_module(module, calibration[0], in_float, "float32")
        with silent_native():
            from ai_edge_quantizer import calibrator, quantizer, recipe, recipe_manager
            from ai_edge_quantizer.qtyping import TFLOperationName
            from ai_edge_quantizer.utils.qsv_utils import min_max_update

            bits = recipe.static_wi8_ai16() if scheme.activation_bits == 16 else recipe.static_wi8_ai8()
            work = quantizer.Quantizer(str(in_float), bits)
            # Float at both ends, as in 8-bit ONNX files: the program around the file stays the same.
            in_float_operators = [TFLOperationName.INPUT, TFLOperationName.OUTPUT]
            if not scheme.every_operator:
                # XNNPACK has no integer kernel for it and would leave the graph to slower ones at each.
                in_float_operators.append(TFLOperationName.HARD_SWISH)
            for operator in in_float_operators:
                work.update_quantization_recipe(".*", operator, algorithm_key="no_quantize")
            (name,) = _interpreter(in_float, 1).get_signature_list()[SIGNATURE]["inputs"]
            images = []
            for batch in calibration:
                images += [{name: batch[i : i + 1]} for i in range(len(batch))]
            # From the smallest to the largest value, as for ONNX files. The default, a moving average of each
            # image's range, cuts off what most images exceed: 12 dB instead of 27 on digits.
            ranges = calibrator.Calibrator(str(in_float), num_threads=1, qsv_update_func=min_max_update)
            recipes = recipe_manager.RecipeManager()
            recipes.load_quantization_recipe(work.get_quantization_recipe())
            ranges.calibrate({SIGNATURE: images}, recipes)
            work.quantize(ranges.get_model_qsvs()).export_model(str(path), overwrite=True)
        in_float.unlink()

    def facts(self, path: Path) -> dict[str, Any]:
        """`names_in_file`, of its one signature, since `input` and `output` in the manifest are ours."""
        names = _interpreter(path, 1).get_signature_list()[SIGNATURE]
        return {"names_in_file": {"input": names["inputs"][0], "output": names["outputs"][0]}}

    def open(self, path: Path, exact: bool = True) -> Run:
        """The file in LiteRT's interpreter on this CPU, one image at a time."""
        import torch

        self.check_installed()
        if not path.is_file():
            raise UserError(f"There is no file '{path}'; write one with python -m export.onnx.")
        try:
            interpreter = _interpreter(path, torch.get_num_threads())
        except Exception as error:  # ValueError, or RuntimeError from a buffer that is cut off
            raise UserError(
                damaged(path, self.runtime, first_line(error).replace(str(path), path.name))
            ) from None

        def run(x: Array) -> Array:
            return np.concatenate([_run(interpreter, x[i : i + 1]) for i in range(len(x))])

        return run

    def import_runtime(self) -> None:
        """Import the interpreter."""
        with silent_native():
            import ai_edge_litert.interpreter  # noqa: F401

    def load(self, path: Path, threads: int) -> LoadedModel:
        """The file in its interpreter."""
        interpreter = _interpreter(path, threads)
        (wanted,) = interpreter.get_input_details()
        shape = [int(side) for side in wanted["shape"]]
        if len(shape) != 4:
            raise ValueError("its input is not one image of a fixed size")
        rng = np.random.default_rng(0)
        image = rng.integers(0, 256, shape) if wanted["dtype"] == np.uint8 else rng.standard_normal(shape)
        image = image.astype(wanted["dtype"])

        def run() -> Array:
            return _run(interpreter, image)

        return LoadedModel(shape, {}, run)


def _interpreter(path: Path, threads: int) -> Any:
    with silent_native():
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(model_path=str(path), num_threads=threads)
        interpreter.allocate_tensors()
    return interpreter


def _run(interpreter: Any, image: Array) -> Array:
    """The first output (1, K) for one image."""
    (wanted,) = interpreter.get_input_details()
    if list(image.shape) != list(wanted["shape"]) or image.dtype != wanted["dtype"]:
        shape = [int(side) for side in wanted["shape"]]
        raise UserError(
            f"The file takes {wanted['dtype'].__name__} {shape}, but was given {image.dtype} "
            f"{list(image.shape)}; see its manifest."
        )
    interpreter.set_tensor(wanted["index"], image)
    interpreter.invoke()
    output: Array = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    return output.copy()  # the interpreter reuses its memory in the next run
