"""A found chain: its space and the operation of each layer. It needs no file beside it to be built.

Published chains are known by name; `chains.yaml` holds them with their sources.
"""

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Self

from pydantic import Field, model_validator

from engine.blocks.layers import cost_of_layer
from engine.config import Config
from engine.errors import nearest
from engine.outside.documents import parse_yaml
from oneshot.chains.layers import ImageShape, chain_specs
from oneshot.chains.space import ChainSpace, load_chain_space


class ChainGenotype(Config):
    """Which operation each layer of a chain has.

    The whole space stands in it, not its name: spaces are files, which may change or move.
    """

    space: ChainSpace
    layers: tuple[str, ...] = Field(description="the operation of each layer, in order")

    @model_validator(mode="after")
    def _offered(self) -> Self:
        if len(self.layers) != len(self.space.layers):
            raise ValueError(
                f"a chain of space '{self.space.name}' has {len(self.space.layers)} layers, not "
                f"{len(self.layers)}"
            )
        for number, (name, layer) in enumerate(zip(self.layers, self.space.layers, strict=True), start=1):
            if name not in layer.operations:
                raise ValueError(
                    f"layer {number} does not offer '{name}'; {nearest(name, list(layer.operations))}"
                )
        return self

    def cost(self, image: ImageShape) -> tuple[int, int]:
        """(MACs of one image, parameters)."""
        macs = params = 0
        for layer in chain_specs(self.space, self.layers, image):
            layer_macs, layer_params = cost_of_layer(layer)
            macs += layer_macs
            params += layer_params
        return macs, params


def chain_of(space: ChainSpace, operations: Sequence[str]) -> ChainGenotype:
    """The chain whose searched layers have these operations; the others have the one that they offer."""
    layers = [layer.operations[0] for layer in space.layers]
    for number, name in zip(space.searched, operations, strict=True):
        layers[number] = name
    return ChainGenotype(space=space, layers=tuple(layers))


@cache
def published_chains() -> dict[str, dict[str, Any]]:
    """The packaged chains by name, each with its space and source."""
    found = parse_yaml(files("oneshot.chains").joinpath("chains.yaml").read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def published_chain(name: str) -> ChainGenotype:
    """The packaged chain of that name."""
    entry = published_chains()[name]
    space = load_chain_space(entry["space"])
    return ChainGenotype(space=space, layers=tuple(entry["layers"].split()))
