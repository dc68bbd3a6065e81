"""A retrained network: the settings it is built from, and what its finished run gives to later stages."""

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from engine.checkpoint import load_weights
from engine.compute.evaluation import BYTES_OF_CELLS, accuracy
from engine.compute.macs import count_macs, count_parameters
from engine.config import Config, validate
from engine.data.dataset import Data, Split
from engine.errors import UserError
from engine.model import ImageModel, image_facts, open_images
from engine.run import Run, read_json
from oneshot.chains.genotype import ChainGenotype
from oneshot.chains.layers import ImageShape
from oneshot.chains.network import FinalChain
from oneshot.networks.final import FinalNetwork, StemName
from oneshot.networks.final_nasbench201 import FinalNasBench201Network
from oneshot.spaces.cells import find_space
from oneshot.spaces.genotype import AnyGenotype

DEFAULT_RUN = Path("runs/retrained")
AUXILIARY = "auxiliary."  # the first part of the names of parameters that only training needs


class NetworkSize(Config):
    """The size of the network of a genotype of cells; a chain has widths and layers of its own."""

    channels: int = Field(36, ge=2, description="width of the first cells; ImageNet: 48")
    cells: int = Field(
        20, ge=1, description="how many; ImageNet: 14; NAS-Bench-201: in each of three stages, 5"
    )
    stem: StemName = Field("cifar", description="cifar: one convolution; imagenet: three of stride 2")
    auxiliary_bn: bool | None = Field(
        None,
        description=(
            "whether the auxiliary head ends with a BatchNorm; none: as the published codes, which lost it "
            "on ImageNet"
        ),
    )


class NetworkModel(ImageModel):
    """model.json: what weights.safetensors belongs to."""

    kind: Literal["genotype"] = "genotype"
    genotype: AnyGenotype
    network: NetworkSize
    image_size: int = Field(description="side of the square that the network takes, in pixels")


def network_model(genotype: AnyGenotype, network: NetworkSize, data: Data) -> NetworkModel:
    """What model.json says of a network for these images."""
    return NetworkModel(genotype=genotype, network=network, image_size=data.size, **image_facts(data))


def build_network(model: NetworkModel, auxiliary: bool = False) -> nn.Module:
    """The untrained network of a genotype, of the kind that its space has.

    Args:
        model: what it is.
        auxiliary: with the second classifier that only training needs, where the space has one.

    Raises:
        UserError: it has none for images.
    """
    genotype, size, classes = model.genotype, model.network, len(model.classes)
    if isinstance(genotype, ChainGenotype):
        image = ImageShape(model.image_size, model.channels, classes)
        return FinalChain(genotype.space, genotype.layers, image)
    match find_space(genotype.space).graph:
        case "darts":
            return FinalNetwork(
                genotype,
                channels=size.channels,
                cells=size.cells,
                classes=classes,
                inputs=model.channels,
                stem=size.stem,
                auxiliary=auxiliary,
                auxiliary_bn=size.auxiliary_bn,
            )
        case "nasbench201":
            return FinalNasBench201Network(genotype, size.channels, size.cells, classes, model.channels)
        case _:
            raise UserError(
                f"Networks of the space '{genotype.space}' cannot be trained on images; give a genotype of "
                "the space 'darts' or 'nasbench201'."
            )


class TrainedNetwork:
    """A retrained network with its data.

    Args:
        path: folder of a finished run of oneshot.retrain.
        device: where to compute.
        images: where the data of the run is now, if it moved.

    Raises:
        UserError: the run or its data is missing, unfinished or damaged.
    """

    def __init__(self, path: Path, device: torch.device, images: Path | None = None):
        self.run, self.device = Run.open(path, command="oneshot.retrain"), device
        self.model = validate(NetworkModel, read_json(path / "model.json"), str(path / "model.json"))
        network = build_network(self.model)
        weights = path / "weights.safetensors"
        try:
            network.load_state_dict(load_weights(weights))
        except RuntimeError:
            raise UserError(
                f"Weights '{weights}' do not fit model.json beside them; copy the run folder again."
            ) from None
        # channels_last is the layout that convolutions are fastest in.
        self.network: nn.Module = network.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self.data: Data = open_images(self.run, self.model, device, images)

    def accuracy(self, split: Split) -> float:
        """Top-1 accuracy in [0, 1] on a split."""
        return accuracy(self.network, self.data.evaluation_batches(split, bytes_a_pixel=BYTES_OF_CELLS))

    def cost(self) -> tuple[int, int]:
        """(MACs of one image, parameters)."""
        return network_cost(self.network, self.model)


def network_cost(network: nn.Module, model: NetworkModel) -> tuple[int, int]:
    """(MACs of one image, parameters) of the network as it is handed on: without an auxiliary head."""
    device = next(network.parameters()).device
    side = model.image_size
    macs = count_macs(network, torch.zeros(1, model.channels, side, side, device=device))
    parameters = count_parameters(network)
    for name, p in network.named_parameters():
        if name.startswith(AUXILIARY):
            parameters -= p.numel()
    return macs, parameters
