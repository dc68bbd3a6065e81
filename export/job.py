"""One network with everything that is needed to write its files and to compare them with torch."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import nn

from export.bake import Bake, CenterCrop, Layout, PixelClassifier
from export.formats.format import Array
from export.source import ExportSource, SourceNetwork
from export.verify import Reference, reference_outputs

if TYPE_CHECKING:
    import onnx


class ExportJob(NamedTuple):
    """Everything that is needed to write the files of one network and to compare them with torch.

    Args:
        module: the network, which takes the same inputs as the files; eval mode, CPU, float32.
        example: two inputs or more, as the files take them.
        reference: the outputs of the module on real images.
        calibration: batches of inputs from which 8-bit ranges are taken.
        layout: of the input.
        probabilities: whether the module ends with softmax.
        parameters: numbers that the network has; a file with more is refused. None: any number is allowed.
        facts: the keys of the manifest that do not depend on the target.
        graphs: what torch exported so far, by batch and opset, since targets share it.
        crop: resize and crop to put in front of the graph, which makes what the module takes of an image of
            any size; none: nothing.
    """

    module: nn.Module
    example: Array
    reference: Reference
    calibration: Sequence[Array]
    layout: Layout
    probabilities: bool
    parameters: int | None
    facts: dict[str, Any]
    graphs: "dict[tuple[str, int], onnx.ModelProto]"
    crop: CenterCrop | None = None


def job_of_run(
    source: ExportSource,
    name: str,
    network: SourceNetwork,
    bake: Bake | None,
    images: int | None,
    calibration_images: int,
) -> ExportJob:
    """The job of a run's network.

    Args:
        source: the run.
        name: of the network; its files are named after it.
        network: what to export.
        bake: what to put into the graph around it, if anything.
        images: how many validation images, from the first on, the files are compared on; None: all.
        calibration_images: training images for 8 bits; 0 if no target needs them.
    """

    # With the resize in the graph, the file takes what the data set gives, and resizes it itself.
    side = bake.crop.side if bake and bake.crop else network.size

    def inputs(x: torch.Tensor) -> Array:
        return (bake.pixels(x) if bake else x).numpy()

    def batches() -> Iterator[tuple[Array, Array | None]]:
        for x, y in source.images("val", side, images):
            yield inputs(x), y.numpy()

    module = PixelClassifier(network.module, bake, network.size) if bake else network.module
    # A real image, since the latency of a file is measured with it, too.
    image = next(iter(batches()))[0][:1]
    # Training images: the validation images are to judge the result, so they must not shape it.
    calibration = []
    if calibration_images:
        calibration = [inputs(x) for x, _ in source.images("train", side, calibration_images)]
    facts = facts_of_run(source, name, network, bake) | {
        "classes": list(source.data.classes),
        "macs": network.macs,
        "params": network.params,
        "predicted_accuracy": network.predicted,
    }
    return ExportJob(
        module=module,
        # Two images: torch's exporter takes an axis of length one for a constant.
        example=np.concatenate([image, image]),
        reference=reference_outputs(module, batches),
        calibration=calibration,
        layout=bake.layout if bake else "NCHW",
        probabilities=bool(bake and bake.softmax),
        parameters=network.params,  # before BatchNorm is folded
        facts=facts,
        graphs={},
        crop=bake.crop if bake else None,
    )


def facts_of_run(
    source: ExportSource, name: str, network: SourceNetwork, bake: Bake | None
) -> dict[str, Any]:
    """The keys of the manifest that say which network of which run it is, and how images are prepared.

    Args:
        source, name, network, bake: as `job_of_run` takes them.
    """
    return {
        "subnet": name,
        "preprocessing": source.preparation(network.size) | {"baked": bake.step if bake else False},
        "architecture": network.architecture,
        "weights": source.weights,
        "seed": source.seed,
        "config_sha256": source.config_sha256,
        "weights_sha256": source.weights_sha256,
    }
