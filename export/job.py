"""A network of a run with the images it is proved on: what every kind of file is written from."""

from collections.abc import Iterator

import numpy as np
import torch

from export.graph import Array
from export.pipeline import Bake, Baked, Subject
from export.source import Network, Source
from export.verify import refer


def subject_of(
    source: Source,
    name: str,
    network: Network,
    bake: Bake | None,
    images: int | None,
    calibration_images: int,
) -> Subject:
    """The network called `name`, judged on the first `images` validation images (all if None); with training
    images for 8 bits, if any."""

    def inputs(x: torch.Tensor) -> Array:
        return (bake.pixels(x) if bake else x).numpy()

    def batches() -> Iterator[tuple[Array, Array | None]]:
        for x, y in source.images("val", network.size, images):
            yield inputs(x), y.numpy()

    module = Baked(network.module, bake) if bake else network.module
    image = next(iter(batches()))[0][:1]
    return Subject(
        module=module,
        example=np.concatenate([image, image]),
        reference=refer(module, batches),
        calibration=[inputs(x) for x, _ in source.images("train", network.size, calibration_images)]
        if calibration_images
        else [],
        layout=bake.layout if bake else "NCHW",
        probabilities=bool(bake and bake.softmax),
        parameters=network.params,
        facts={
            "subnet": name,
            "classes": list(source.data.classes),
            "preprocessing": source.preparation(network.size) | {"baked": bake is not None},
            "architecture": network.architecture,
            "macs": network.macs,
            "params": network.params,
            "predicted_accuracy": network.predicted,
            "seed": source.seed,
            "config_sha256": source.config_sha256,
        },
        graphs={},
    )
