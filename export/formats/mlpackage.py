"""Core ML packages (.mlpackage, zipped): for apps on iOS and macOS with Apple's own runtime.

Written from the torch module by coremltools, as an ML program, on Linux and macOS. Core ML predicts on macOS
only: elsewhere the file is not compared with torch, and says so in its manifest (`not_run`). What can be
looked at is checked when it is written: shapes, types, precision and every weight.

A package is a folder. It travels as one file, `NAME.mlpackage.zip`, which Finder and `unzip` unfold. Needs
`pip install 'ofa-toolkit[coreml]'`.
"""

import json
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.errors import UserError
from engine.outside.documents import parse_json
from export.formats.format import Array, Format, LoadedModel, Precision, Run
from export.formats.onnx import damaged, first_line
from export.formats.silence import silent_native

if TYPE_CHECKING:
    from torch import nn

INPUT, OUTPUT = "image", "logits"
OLDEST = "iOS16"  # the oldest system that runs the file
# A zip file holds dates; with this one the same export gives the same bytes.
DATE = (2000, 1, 1, 0, 0, 0)


class MlPackageFormat(Format):
    """Zipped .mlpackage folders."""

    name = "mlpackage"
    suffix = ".mlpackage.zip"
    runtime = "Core ML"
    package = "coremltools"
    extra = "coreml"
    written_from = "module"
    precisions = ("float32", "float16")
    one_image = True
    manifest_suffix = ".mlpackage.json"

    def not_run_here(self) -> str:
        """Core ML is a part of macOS."""
        return "" if sys.platform == "darwin" else "Core ML predicts on macOS only"

    def write_module(self, module: "nn.Module", example: Array, path: Path, precision: Precision) -> None:
        """Convert the module for one image, check what was written, and zip it.

        Raises:
            UserError: coremltools cannot convert the module, or wrote another one.
        """
        import torch

        from engine.onnx_file import fold_batch_norm

        if example.dtype != np.float32:
            raise UserError(
                "Core ML takes float32 arrays; leave out --bake, and scale the pixels in the app "
                "as the manifest says."
            )
        folded = fold_batch_norm(module)
        with silent_native():
            import coremltools as ct

            try:
                exported = torch.export.export(folded, (torch.from_numpy(example[:1]),))
                model = ct.convert(
                    exported.run_decompositions({}),
                    convert_to="mlprogram",
                    minimum_deployment_target=ct.target[OLDEST],
                    compute_precision=ct.precision[precision.upper()],
                    inputs=[ct.TensorType(name=INPUT, shape=example[:1].shape, dtype=np.float32)],
                    outputs=[ct.TensorType(name=OUTPUT, dtype=np.float32)],
                    skip_model_load=True,
                )
            except Exception as error:  # torch.export's, and whatever the converter's passes raise
                raise UserError(
                    f"coremltools cannot convert {type(module).__name__}: {first_line(error)}; its forward "
                    "must not depend on the values of the image."
                ) from None
            # It holds the date, which would differ at each export. The versions are in the manifest.
            model.user_defined_metadata.clear()
            folder = path.with_name(path.name.removesuffix(".zip"))
            model.save(str(folder))
            complaint = _complaint(model, folded, precision, example)
        if complaint:
            raise UserError(f"coremltools wrote another network than it was given: {complaint}.")
        _zip(folder, path)
        shutil.rmtree(folder)

    def open(self, path: Path, exact: bool = True) -> Run:
        """The file in Core ML, one image at a time; `exact` keeps it on the CPU.

        Raises:
            UserError: it is missing or damaged, or this is not macOS.
        """
        self.check_installed()
        if not path.is_file():
            raise UserError(f"There is no file '{path}'; write one with python -m export.onnx.")
        try:
            with zipfile.ZipFile(path) as packed:
                bad = packed.testzip()
        except (zipfile.BadZipFile, EOFError) as error:
            raise UserError(damaged(path, self.runtime, first_line(error))) from None
        if bad is not None:
            raise UserError(damaged(path, self.runtime, f"'{bad}' in it is not what was packed"))
        if self.not_run_here():
            raise UserError(f"'{path}' cannot be run on this machine: {self.not_run_here()}.")
        model = _model(path, exact)

        def run(x: Array) -> Array:
            return np.concatenate([model.predict({INPUT: x[i : i + 1]})[OUTPUT] for i in range(len(x))])

        return run

    def load(self, path: Path, threads: int) -> LoadedModel:
        """The file in Core ML, which decides itself on what unit and with how many threads it runs."""
        if self.not_run_here():
            raise ValueError(self.not_run_here())
        model = _model(path, exact=False)
        shape = [int(side) for side in model.get_spec().description.input[0].type.multiArrayType.shape]
        image = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)

        def run() -> Array:
            output: Array = model.predict({INPUT: image})[OUTPUT]
            return output

        return LoadedModel(shape, {}, run)


def _model(path: Path, exact: bool) -> Any:
    """The unfolded package in Core ML, which compiles it as it is loaded."""
    import coremltools as ct

    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(path) as packed:
            packed.extractall(folder)
        units = ct.ComputeUnit.CPU_ONLY if exact else ct.ComputeUnit.ALL
        return ct.models.MLModel(str(Path(folder) / path.name.removesuffix(".zip")), compute_units=units)


def _complaint(model: Any, module: "nn.Module", precision: Precision, example: Array) -> str:
    """What is wrong with a converted model, as a clause; empty if nothing is.

    Its input and output must have the shapes and types that the manifest says, and it must hold every weight
    of the module (BatchNorm folded), to rounding, in the precision that was asked for. A BatchNorm that
    `fold_batch_norm` left is folded by coremltools, which multiplies each output channel by a number: the
    weights of each channel are then compared up to that.
    """
    import torch
    from coremltools.optimize.coreml import get_weights_metadata

    description = model.get_spec().description
    ends = [*description.input, *description.output]
    with torch.no_grad():
        output = module(torch.from_numpy(example[:1]))
    for end, wanted in zip(ends, (example[:1].shape, output.shape), strict=True):
        array = end.type.multiArrayType
        if list(array.shape) != list(wanted) or array.dataType != array.FLOAT32:
            return f"{end.name} has shape {list(array.shape)}, or is not float32"
    found = [metadata.val for metadata in get_weights_metadata(model, weight_threshold=0).values()]
    kind = np.dtype(precision)
    scaled = any(isinstance(part, torch.nn.BatchNorm2d) for part in module.modules())
    for name, weight in module.named_parameters():
        if weight.ndim < 2:  # biases may be merged, and layers without one are given zeros
            continue
        values = weight.detach().numpy()
        same = [other for other in found if other.size == values.size and other.dtype == kind]
        if not any(_holds(other, values, scaled) for other in same):
            return f"weight '{name}' is not among its {precision} numbers"
    return ""


def _holds(found: Array, weight: Array, scaled: bool) -> bool:
    """Whether numbers of a file are a layer's weights; `scaled`: up to a factor of each output channel."""
    wanted = weight.reshape(len(weight), -1).astype(np.float64)
    found = found.reshape(wanted.shape).astype(np.float64)
    if scaled:
        power = np.square(wanted).sum(1, keepdims=True)
        wanted = wanted * (found * wanted).sum(1, keepdims=True) / np.where(power == 0, 1, power)
    # A norm may make all of a channel so small that float16 has hardly any digits for it.
    limit = 1e-3 * np.abs(found).max(1, keepdims=True) + 1e-6
    return bool((np.abs(found - wanted) <= limit).all())


def _zip(folder: Path, path: Path) -> None:
    """Pack a package, with the same bytes each time."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for file in sorted(folder.rglob("*")):
            # Not the mapping for a debugger of ExecuTorch, which coremltools leaves beside the model.
            if not file.is_file() or file.name == "executorch_debug_handle_mapping.json":
                continue
            content = file.read_bytes()
            if file.name == "Manifest.json":
                content = _with_fixed_names(content)
            entry = zipfile.ZipInfo(file.relative_to(folder.parent).as_posix(), DATE)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            packed.writestr(entry, content)


def _with_fixed_names(manifest: bytes) -> bytes:
    """The package's own manifest, whose random identifiers become numbers in the order of their paths."""
    values = parse_json(manifest)
    entries = values["itemInfoEntries"]
    names = {}
    for number, old in enumerate(sorted(entries, key=lambda name: str(entries[name]["path"]))):
        names[old] = f"00000000-0000-0000-0000-{number:012d}"
    values["itemInfoEntries"] = {names[old]: entry for old, entry in entries.items()}
    values["rootModelIdentifier"] = names[values["rootModelIdentifier"]]
    return json.dumps(values, indent=4, sort_keys=True).encode()
