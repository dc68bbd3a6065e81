"""Static 8-bit quantisation that keeps its accuracy: activations unsigned, weights signed with one scale per
channel (QDQ).

Ranges are those seen on training images (smallest and largest). If top-1 on validation images falls by more
than allowed, the layers that hurt most stay in float32: each layer is quantised alone, and the one that
leaves the least signal-to-noise in the logits goes first.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from engine.command.progress import progress
from export.graph import Array, pool_globally, silent
from export.verify import Parity, Reference, compare, open_session, run_file

WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
ELEMENTWISE = "operations without weights"
MOST_IN_FLOAT = 0.5
SNR_IMAGES = 64


class Quantized(NamedTuple):
    """What came out.

    Args:
        parity: the file against torch.
        drop: lost top-1, in points (hundredths).
        layers: layers that could be quantised; the operations without weights count as one.
        float_layers: those that stayed in float32, the one that hurts most first.
        complaint: a sentence if the accuracy could not be held, else empty.
    """

    parity: Parity
    drop: float
    layers: int
    float_layers: tuple[str, ...]
    complaint: str


def quantize(
    model: onnx.ModelProto, out: Path, calibration: Sequence[Array], reference: Reference, max_drop: float
) -> Quantized:
    """`model` in 8 bits as the file `out`, with as few layers in float32 as its accuracy allows.

    Args:
        model: float32.
        out: in a folder for temporary files.
        calibration: batches of inputs.
        reference: the torch module on validation images.
        max_drop: points of top-1 that may be lost on them.
    """
    pool_globally(model)
    prepared = out.with_suffix(".prepared.onnx")
    with silent():
        quant_pre_process(model, str(prepared))
    work = _Quantizer(prepared, out, calibration)
    tried: dict[int, tuple[Parity, float]] = {}

    def holds(count: int) -> bool:
        """Whether accuracy is kept with the `count` worst layers in float32."""
        work.write([layer for layer in work.layers if layer not in ranked[:count]])
        parity = compare(reference, out)
        tried[count] = parity, 100 * (reference.accuracy - parity.accuracy)
        return tried[count][1] <= max_drop + 1e-9 and np.isfinite(parity.relative_error)

    ranked: list[str] = []
    most, count = int(MOST_IN_FLOAT * len(work.layers)), 0
    if not holds(0):
        ranked = work.rank()
        count = fewest(holds, most)
    if count in tried and tried[count][1] <= max_drop + 1e-9:
        holds(count)  # the last file written was another
        return Quantized(*tried[count], len(work.layers), tuple(ranked[:count]), "")
    best = min(tried, key=lambda k: tried[k][1])
    sentence = (
        f"loses {tried[0][1]:.2f} points of top-1 in 8 bits, and still {tried[best][1]:.2f} with the {best} "
        "worst of "
        f"{len(work.layers)} layers in float32 (limit {max_drop:g})"
    )
    return Quantized(*tried[best], len(work.layers), tuple(ranked[:best]), sentence)


def fewest(holds: Callable[[int], bool], most: int) -> int:
    """A small count from 1 to `most` that holds: doubled until one does, then halved towards the last that
    did not; `most` + 1 if none.

    Accuracy is not monotonic, so it need not be the smallest.
    """
    below, count = 0, 1
    while count <= most and not holds(count):
        below, count = count, most if count < most < 2 * count else 2 * count
    while count <= most and count - below > 1:
        middle = (below + count) // 2
        below, count = (below, middle) if holds(middle) else (middle, count)
    return min(count, most + 1)


class _Quantizer:
    """Writes the model with some of its layers in 8 bits; ranges are measured once."""

    def __init__(self, prepared: Path, out: Path, calibration: Sequence[Array]):
        model = onnx.load(prepared)
        one = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
        self.prepared, self.out = prepared, out
        self.calibration = (
            [batch[i : i + 1] for batch in calibration for i in range(len(batch))] if one else calibration
        )
        self.input = model.graph.input[0].name
        weights, nodes = {tensor.name for tensor in model.graph.initializer}, list(model.graph.node)
        self.weighted = [n.name for n in nodes if n.op_type in WEIGHTED and weights & set(n.input)]
        pixels = (
            model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
        )  # their normalisation is not a layer
        start = next((i for i, n in enumerate(nodes) if n.name in self.weighted), 0) if pixels else 0
        self.never = [n.name for i, n in enumerate(nodes) if i < start or n.op_type == "Softmax"]
        self.others = [n.name for n in nodes if n.name not in {*self.weighted, *self.never}]
        self.layers = [*self.weighted, ELEMENTWISE]

    def write(self, layers: Sequence[str]) -> None:
        """The file with exactly these layers in 8 bits."""
        in_float = (
            [name for name in self.weighted if name not in layers]
            + self.never
            + ([] if ELEMENTWISE in layers else self.others)
        )
        self.out.unlink(missing_ok=True)
        with silent():
            quantize_static(
                self.prepared,
                self.out,
                _Reader(self.input, self.calibration),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=in_float,
                calibration_cache_path=self.out.with_suffix(".ranges"),
            )

    def rank(self) -> list[str]:
        """All layers, the one first that alone leaves the least signal-to-noise in the logits."""
        images = np.concatenate(self.calibration)[:SNR_IMAGES]
        self.write([])
        wanted = run_file(open_session(self.out), images)
        noise = {}
        with progress("layers in 8 bits, one by one", len(self.layers)) as advance:
            for layer in self.layers:
                self.write([layer])
                noise[layer] = float(
                    np.square(run_file(open_session(self.out), images) - wanted, dtype=np.float64).mean()
                )
                advance(layer)
        return sorted(noise, key=lambda layer: -noise[layer])


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Batches as the calibrator wants them."""

    def __init__(self, name: str, batches: Sequence[Array]):
        self.batches: Iterator[dict[str, Array]] = iter([{name: batch} for batch in batches])

    def get_next(self) -> dict[str, Array] | None:
        return next(self.batches, None)
