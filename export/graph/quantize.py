"""Static 8-bit quantisation (QDQ) that holds the accuracy.

Activations are unsigned, weights signed with one scale per channel. The range of an activation is from the
smallest to the largest value seen on training images. If top-1 on validation images falls by more than
allowed, the layers that hurt most stay in float32. To rank them, each layer is quantised alone; the one that
leaves the least signal-to-noise in the logits is the first to stay.

Every number here comes from exact sessions (`open_onnxruntime`), so that the choice of layers does not depend
on how this machine's CPU sums 8-bit products. A target that is this CPU asks for the opposite.

For an NPU every operator is quantised, as onnxruntime's configuration for Qualcomm's does it: the default
list leaves out HardSwish and HardSigmoid, and an NPU would hand these back to the CPU. Written as add, clip
and multiply they are three nodes with three more tensors to round, for nothing. With 16 bits for activations
the same configuration serves, since it knows what the NPU wants of them.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config
from onnxruntime.quantization.shape_inference import quant_pre_process

from engine.command.progress import progress
from export.formats.format import Array, Quantization
from export.formats.onnx import open_onnxruntime, run_session
from export.formats.silence import silent
from export.graph.operators import pool_globally
from export.verify import Parity, Reference, compare_file

WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
# All operations without weights are switched together: one by one they are too many to try.
ELEMENTWISE = "operations without weights"
MOST_IN_FLOAT = 0.5  # share of the layers; with more in float32 the file has lost what 8 bits are for
SNR_IMAGES = 64  # for the ranking, in which every layer takes a run over all of them
ROUNDING = 1e-9  # a drop that equals the limit must not fail for the last bit of a difference


INT8 = Quantization()


class Quantized(NamedTuple):
    """What became of a quantisation.

    Args:
        parity: the file against torch.
        drop: top-1 lost, in points (hundredths).
        layers: how many layers could be quantised; the operations without weights count as one.
        float_layers: those that stayed in float32, the one that hurts most first.
        complaint: a sentence if the accuracy could not be held, else empty.
    """

    parity: Parity
    drop: float
    layers: int
    float_layers: tuple[str, ...]
    complaint: str


def quantize(
    model: onnx.ModelProto,
    out: Path,
    calibration: Sequence[Array],
    reference: Reference,
    max_drop: float,
    scheme: Quantization = INT8,
    exact: bool = True,
) -> Quantized:
    """Write `model` in 8 bits, with as few layers in float32 as its accuracy allows.

    Args:
        model: float32; it is changed in place.
        out: the file to write, in a folder for temporary files.
        calibration: batches of inputs (N, ...) as the file takes them.
        reference: the torch module on validation images.
        max_drop: points of top-1 that may be lost on them.
        scheme: which integers.
        exact: in which sums the file is judged, as `export.verify.compare_file` takes it.

    Returns:
        What was written. If its `complaint` is not empty, the accuracy is not held: do not use `out`.
    """
    pool_globally(model)  # a mean over a map would stay in float32 between 8-bit layers
    prepared = _with_shapes(model, out)
    quantizer = _Quantizer(prepared, out, calibration, scheme, exact)
    layers = quantizer.layers
    ranked: list[str] = []  # filled when 8 bits everywhere turn out not to hold
    tried: dict[int, tuple[Parity, float]] = {}  # (parity, drop) by number of layers in float32

    def holds(count: int) -> bool:
        """Whether the accuracy is held with the `count` worst layers in float32."""
        in_float = ranked[:count]
        quantizer.write([layer for layer in layers if layer not in in_float])
        parity = compare_file(reference, out, exact)
        drop = 100 * (reference.accuracy - parity.accuracy)
        tried[count] = parity, drop
        return drop <= max_drop + ROUNDING and bool(np.isfinite(parity.relative_error))

    count = 0
    if not holds(0):
        ranked = quantizer.rank()
        count = fewest(holds, int(MOST_IN_FLOAT * len(layers)))
    if count in tried and tried[count][1] <= max_drop + ROUNDING:
        holds(count)  # writes the file again, since the last one tried may have been another
        parity, drop = tried[count]
        return Quantized(parity, drop, len(layers), tuple(ranked[:count]), "")
    best = min(tried, key=lambda number: tried[number][1])
    parity, drop = tried[best]
    complaint = (
        f"loses {tried[0][1]:.2f} points of top-1 in 8 bits, and still {drop:.2f} with the {best} worst of "
        f"{len(layers)} layers in float32 (limit {max_drop:g})"
    )
    return Quantized(parity, drop, len(layers), tuple(ranked[:best]), complaint)


def _with_shapes(model: onnx.ModelProto, out: Path) -> Path:
    """Write the model beside `out` with the shape of every value, which the quantiser asks for."""
    prepared = out.with_suffix(".prepared.onnx")
    with silent():
        # Shapes only. onnxruntime's optimiser would write HardSwish as HardSigmoid and Mul, whose product of
        # two rounded tensors is worse, and would import every domain of operators that it knows.
        try:
            quant_pre_process(model, str(prepared), skip_optimization=True)
        except Exception:
            # onnxruntime's own inference of shapes fails on some means over axes that depend on shapes, with
            # errors of many kinds. ONNX's inference, which follows it, knows enough for convolutions.
            quant_pre_process(model, str(prepared), skip_optimization=True, skip_symbolic_shape=True)
    return prepared


def fewest(holds: Callable[[int], bool], most: int) -> int:
    """A small count from 1 to `most` that holds, or `most` + 1 if none does.

    The count is doubled until one holds, and then halved towards the last that did not. Accuracy is not
    monotonic in the count, so the result need not be the smallest.
    """
    # Every trial quantises and runs the whole network: few trials count more than the smallest result.
    below, count = 0, 1  # below: the largest count known not to hold
    while count <= most and not holds(count):
        below = count
        # The last step must not jump over `most` without having tried it.
        count = most if count < most < 2 * count else 2 * count
    while count <= most and count - below > 1:
        middle = (below + count) // 2
        if holds(middle):
            count = middle
        else:
            below = middle
    return min(count, most + 1)


class _Quantizer:
    """Writes a model with some of its layers in 8 bits; the ranges are measured once."""

    def __init__(
        self, prepared: Path, out: Path, calibration: Sequence[Array], scheme: Quantization, exact: bool
    ):
        self.model, self.scheme, self.exact = onnx.load(prepared), scheme, exact
        model = self.model
        image, nodes = model.graph.input[0], list(model.graph.node)
        self.prepared, self.out, self.input = prepared, out, image.name
        self.calibration = calibration
        if image.type.tensor_type.shape.dim[0].dim_value == 1:  # the file takes one image at a time
            self.calibration = [batch[i : i + 1] for batch in calibration for i in range(len(batch))]
        constants = {tensor.name for tensor in model.graph.initializer}
        self.weighted = [n.name for n in nodes if n.op_type in WEIGHTED and constants & set(n.input)]
        # A file that takes pixels normalises them first, which is no layer of the network: what stands before
        # the first layer stays in float32, and so does softmax.
        start = 0
        if image.type.tensor_type.elem_type == onnx.TensorProto.UINT8:
            start = next((i for i, node in enumerate(nodes) if node.name in self.weighted), 0)
        self.never = [n.name for i, n in enumerate(nodes) if i < start or n.op_type == "Softmax"]
        self.others = [n.name for n in nodes if n.name not in {*self.weighted, *self.never}]
        self.layers = [*self.weighted, ELEMENTWISE]

    def write(self, layers: Sequence[str]) -> None:
        """Write the file with exactly these layers in 8 bits."""
        in_float = [name for name in self.weighted if name not in layers] + self.never
        if ELEMENTWISE not in layers:
            in_float += self.others
        self.out.unlink(missing_ok=True)  # if quantising fails, the file of another choice must not be read
        reader = _Reader(self.input, self.calibration)
        activation_type = QuantType.QUInt16 if self.scheme.activation_bits == 16 else QuantType.QUInt8
        # None: onnxruntime's own list of operators that it has integer kernels for.
        operators, options = None, {}
        if self.scheme.every_operator or self.scheme.activation_bits == 16:
            # It knows which scales the NPU wants of some outputs, such as that of a 16-bit Sigmoid.
            config = get_qnn_qdq_config(
                self.model,
                reader,
                activation_type=activation_type,
                weight_type=QuantType.QInt8,
                per_channel=True,
                nodes_to_exclude=in_float,
            )
            options = config.extra_options
            # Sorted, since that of a set differs between processes, and exporting twice gives the same bytes.
            operators = sorted(config.op_types_to_quantize)
        with silent():
            quantize_static(
                self.prepared,
                self.out,
                reader,
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=activation_type,
                weight_type=QuantType.QInt8,
                op_types_to_quantize=operators,
                nodes_to_exclude=in_float,
                extra_options=options,
                # Ranges do not depend on which layers are in 8 bits, so they are measured at the first call.
                calibration_cache_path=self.out.with_suffix(".ranges"),
            )

    def rank(self) -> list[str]:
        """All layers, first the one that leaves the least signal-to-noise in the logits when it is alone in 8
        bits."""
        images = np.concatenate(self.calibration)[:SNR_IMAGES]
        # The reference is the prepared graph in float32, not torch: only the noise of 8 bits is to be ranked.
        self.write([])
        wanted = self._outputs(images)
        noise = {}
        with progress("layers in 8 bits, one by one", len(self.layers)) as advance:
            for layer in self.layers:
                self.write([layer])
                difference = self._outputs(images) - wanted
                noise[layer] = float(np.square(difference, dtype=np.float64).mean())
                advance(layer)
        # The signal is the same for all, so most noise is least signal-to-noise.
        return sorted(noise, key=noise.__getitem__, reverse=True)

    def _outputs(self, images: Array) -> Array:
        """Outputs (N, K) of the file as it was written last."""
        return run_session(open_onnxruntime(self.out, self.exact), images)


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Batches in the form that onnxruntime's calibrator asks for."""

    def __init__(self, name: str, batches: Sequence[Array]):
        self.batches: Iterator[dict[str, Array]] = iter([{name: batch} for batch in batches])

    def get_next(self) -> dict[str, Array] | None:
        return next(self.batches, None)
