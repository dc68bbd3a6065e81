"""A search space of chains as data: a stem, layers in stages, and a head; `oneshot/chains/spaces/*.yaml`.

ProxylessNAS (2019, arXiv:1812.00332) and FBNet (2019, arXiv:1812.03443) search such spaces. To a search
method a chain is one kind of cell, whose every node reads the node before it: alphas are (searched layers,
operations).
"""

import functools
import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from engine.blocks.activation import Act
from engine.config import Config, read_yaml, validate
from engine.errors import UserError, nearest
from oneshot.chains.operation import SKIP, parse_operation

CHAIN = "chain"  # the one kind of cell of these spaces
SMALL_IMAGES = 64  # pixels: published settings are for ImageNet, and a search on smaller images is shorter


class ChainStem(Config):
    """The convolution that reads the image."""

    width: int = Field(ge=1, description="channels")
    stride: int = Field(2, ge=1, le=2)
    act: Act | None = Field(None, description="activation; none: the space's")


class ChainStage(Config):
    """Layers of one width; the first of them has the stride."""

    width: int = Field(ge=1, description="channels")
    layers: int = Field(ge=1, le=100, description="how many")
    stride: int = Field(1, ge=1, le=2)
    candidates: tuple[str, ...] = Field(
        (), description="what each layer chooses from; none: what the space names"
    )


class ChainHead(Config):
    """The 1x1 convolution before the pool."""

    width: int = Field(ge=1, description="channels")


class ChainLayer(NamedTuple):
    """One layer of a chain.

    Args:
        inp, out: channels of its input and output.
        stride: of its block.
        operations: what it chooses from.
    """

    inp: int
    out: int
    stride: int
    operations: tuple[str, ...]


class ChainSpace(Config):
    """A search space of chains."""

    name: str
    source: str = Field("", description="paper or file the numbers come from")
    resolution: int = Field(ge=8, description="side of the images that it was made for; others are possible")
    act: Act = Field("relu", description="activation of the blocks and of the head")
    bn_eps: float = Field(1e-5, gt=0, description="BatchNorm's epsilon")
    expand_always: bool = Field(
        False, description="whether blocks of expansion 1 have their first 1x1 convolution, too (FBNet)"
    )
    stem: ChainStem
    candidates: tuple[str, ...] = Field(
        (), description="what a layer chooses from, where its stage names nothing else"
    )
    stages: tuple[ChainStage, ...] = Field(min_length=1)
    head: ChainHead | None = Field(None, description="none: the pooled map goes to the classifier")

    @model_validator(mode="after")
    def _check(self) -> Self:
        for number, layer in enumerate(self.layers, start=1):
            if not layer.operations:
                raise ValueError(
                    f"layer {number} has nothing to choose from; name candidates: skip is one only where the "
                    "stride is 1 and the width that of the layer before"
                )
            if len(set(layer.operations)) < len(layer.operations):
                raise ValueError(f"layer {number} names an operation twice: {', '.join(layer.operations)}")
            for name in layer.operations:
                operation = parse_operation(name)
                if operation and (layer.inp % operation.groups or layer.out % operation.groups):
                    raise ValueError(
                        f"layer {number}: {name} cannot cut {layer.inp} and {layer.out} channels into "
                        f"{operation.groups} groups; take widths that are multiples"
                    )
        if not self.searched:
            raise ValueError("no layer has a choice; name two candidates or more")
        return self

    @cached_property
    def layers(self) -> tuple[ChainLayer, ...]:
        """All layers in order; `skip` is offered only where a layer's input and output agree."""
        layers, inp = [], self.stem.width
        for stage in self.stages:
            for number in range(stage.layers):
                stride = stage.stride if number == 0 else 1
                offered = stage.candidates or self.candidates
                if stride > 1 or inp != stage.width:
                    offered = tuple(name for name in offered if name != SKIP)
                layers.append(ChainLayer(inp, stage.width, stride, offered))
                inp = stage.width
        return tuple(layers)

    @cached_property
    def searched(self) -> tuple[int, ...]:
        """The layers that have a choice; the others are as they are."""
        return tuple(number for number, layer in enumerate(self.layers) if len(layer.operations) > 1)

    @cached_property
    def fingerprint(self) -> str:
        """A name of what decides latency: spaces of equal fingerprint share latency tables."""
        choices = self.model_dump(mode="json", exclude={"name", "source", "bn_eps", "resolution"})
        return hashlib.blake2b(json.dumps(choices, sort_keys=True).encode(), digest_size=8).hexdigest()

    def codes_of(self, operations: Sequence[str], size: int) -> bytes:
        """A chain in bytes: two for the side of the images, and for each layer the place of its operation."""
        pairs = zip(self.layers, operations, strict=True)
        return size.to_bytes(2) + bytes(layer.operations.index(name) for layer, name in pairs)

    def chain_of_codes(self, codes: bytes) -> tuple[tuple[str, ...], int] | None:
        """(operations, side of the images) that bytes mean; None if they mean no chain of this space."""
        places = codes[2:]
        if len(places) != len(self.layers):
            return None
        operations = []
        for place, layer in zip(places, self.layers, strict=True):
            if place >= len(layer.operations):
                return None
            operations.append(layer.operations[place])
        return tuple(operations), int.from_bytes(codes[:2])

    # What follows is the space as search methods see it: `oneshot.spaces.search_space`.

    @property
    def cells(self) -> tuple[str, ...]:
        """One kind of cell: the chain."""
        return (CHAIN,)

    @property
    def inputs(self) -> int:
        """The chain reads one state, what comes before its first searched layer."""
        return 1

    @property
    def nodes(self) -> int:
        """One for each searched layer."""
        return len(self.searched)

    @property
    def keeps(self) -> int | None:
        """None: every node keeps its one edge."""
        return None

    @cached_property
    def operations(self) -> tuple[str, ...]:
        """Every operation that some searched layer offers, in the order in which they are first named."""
        found: dict[str, None] = {}
        for number in self.searched:
            found.update(dict.fromkeys(self.layers[number].operations))
        return tuple(found)

    @cached_property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """(source, target): each node reads the one before it."""
        return tuple((node, node + 1) for node in range(self.nodes))

    @cached_property
    def entering(self) -> tuple[slice, ...]:
        """For each node its edge."""
        return tuple(slice(node, node + 1) for node in range(self.nodes))

    def allowed_mask(self, kind: str, device: torch.device | str = "cpu") -> Tensor:
        """(E, O) booleans: which operations compete in which searched layer.

        It is the same tensor every time: do not change it in place.
        """
        return _allowed_mask(self, torch.device(device))


# Every step asks for the mask, so it is built and copied to the device only once.
@functools.cache
def _allowed_mask(space: ChainSpace, device: torch.device) -> Tensor:
    rows = []
    for number in space.searched:
        offered = space.layers[number].operations
        rows.append([name in offered for name in space.operations])
    return torch.tensor(rows, device=device)


def load_chain_space(name: str) -> ChainSpace:
    """Read a space of chains.

    Args:
        name: path of a YAML file, or the name of a packaged space such as `proxyless`.

    Raises:
        UserError: there is none, or it is not valid.
    """
    path = Path(name) if Path(name).is_file() else _packaged() / f"{name}.yaml"
    if not path.is_file():
        known = packaged_chain_spaces()
        raise UserError(
            f"There is no space of chains '{name}', neither as a file nor as a packaged one; "
            f"{nearest(name, known)}"
        )
    # A file that gives no name is named like the file.
    return validate(ChainSpace, {"name": path.stem} | read_yaml(path), str(path))


def packaged_like(name: str) -> str:
    """The space whose settings hold: for a file of chains `chain32` or `proxyless`, else `name`."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        resolution = read_yaml(path).get("resolution")
        if isinstance(resolution, int):
            return "chain32" if resolution <= SMALL_IMAGES else "proxyless"
    return name


def packaged_chain_spaces() -> list[str]:
    """The names of the packaged spaces, in alphabetical order."""
    return sorted(path.stem for path in _packaged().glob("*.yaml"))


def _packaged() -> Path:
    return Path(str(files("oneshot.chains"))) / "spaces"
