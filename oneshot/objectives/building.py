"""The objective of a search on images, with its untrained network."""

from typing import Any

import torch
from torch import nn

from engine.config import tags_of
from engine.data.dataset import Data
from engine.data.folder import ImageFolder
from engine.data.sources import AnyData, TextConfig, load_data
from engine.data.text import Text, load_text
from engine.seed import derive
from engine.training import fitting_batch, fitting_columns, print_classes
from oneshot.chains.layers import ImageShape
from oneshot.chains.network import ChainNetwork
from oneshot.chains.space import SMALL_IMAGES, ChainSpace
from oneshot.methods.method import Method
from oneshot.networks.search import stem_for
from oneshot.objectives.images import ImageObjective, search_network
from oneshot.spaces.cells import CellSpace
from oneshot.spaces.search_space import SearchSpace


def usual_cells(space: str) -> int:
    """Cells of a search network as published: 5 in each of three stages, or 8 in the whole network."""
    return 5 if space == "nasbench201" else 8


def usual_space(kind: type[Method], data: Any) -> str:
    """The space that a method searches if none is named: one that it is for.

    Args:
        kind: of the method.
        data: the section of the data as it was given.
    """
    if kind.chains is None:
        return "darts"
    given = data if isinstance(data, dict) else {}
    size = given.get("size", ImageFolder.model_fields["size"].default)
    # Images of other sources are small.
    is_large = given.get("name") in tags_of(ImageFolder) and _pixels(size) > SMALL_IMAGES
    return kind.chains if is_large else "chain32"


def _pixels(size: Any) -> float:
    """The size as it was given; 0 for what is no number, which is refused later."""
    try:
        return float(str(size))
    except ValueError:
        return 0.0


def usual_data(space: str, data: dict[str, Any]) -> str:
    """The data that a space is searched on if none is named."""
    if space != "recurrent":
        return "digits"
    return "text" if "path" in data else "grammar"


def read_data(config: AnyData, device: torch.device, seed: int) -> Data | Text:
    """The text, or the images, of which it is printed how they were split.

    Args:
        config: the settings of the source.
        device: where batches of images are delivered.
        seed: decides which images are held out and what augmentation draws.
    """
    if isinstance(config, TextConfig):
        return load_text(config)
    data = load_data(config, device, seed)
    print_classes(data)
    return data


def fit_batch(asked: int, data: Data | Text, method: Method) -> int:
    """The batch that is asked for, or one that each part of the data can fill, which is then printed."""
    if isinstance(data, Text):
        return fitting_columns(asked, data.splits["train"], data.splits["val"])
    if method.level == "bilevel":
        images = min(data.count("train"), data.count("val"))
        there_are = f"{images} images in the smaller part"
        # The smaller part is never larger than a half.
        if data.config.val != 0.5:
            there_are += "; take --data.val nearer to 0.5"
        return fitting_batch(asked, images, "images", there_are)
    images = data.size_of("both")
    return fitting_batch(asked, images, "images", f"{images} training images")


def image_objective(
    space: SearchSpace,
    method: Method,
    data: Data,
    channels: int,
    cells: int,
    batch_size: int,
    seed: int,
) -> ImageObjective:
    """The objective, whose weights are drawn by `seed`; a chain has its own channels and layers."""
    with torch.random.fork_rng(devices=[]):  # torch's initialisers draw from the global generator
        torch.manual_seed(derive(seed, "weights"))
        if isinstance(space, ChainSpace):
            image = ImageShape(data.size, data.channels, len(data.classes))
            network: nn.Module = ChainNetwork(space, image)
        else:
            assert isinstance(space, CellSpace)
            classes, inputs = len(data.classes), data.channels
            stem = stem_for(data.size)
            network = search_network(space, method, channels, cells, classes, inputs, stem)
    single, two_batches = method.level != "bilevel", method.level == "released"
    return ImageObjective(network, data, batch_size, single, two_batches)
