"""Networks whose trained weights can be had: which space holds them, and what belongs to their weights.

The entries are data: `networks/*.yaml`, one file a family. A file of the user's own may hold one entry more.
"""

import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, PositiveFloat, model_validator

from engine.config import Config, merge, read_yaml, validate
from engine.data.dataset import Interpolation, Preprocessing
from engine.errors import UserError, nearest
from ofa.space.arch import Arch
from ofa.space.published import find_arch, published
from ofa.space.space import Space, load_space

# Whose definition of a network weights belong to. `package` are installed packages, `own` the user's files.
Source = Literal["timm", "torchvision", "package", "own"]


class Network(Config):
    """A trained network of one source, as an architecture of a space."""

    name: str = Field(description="the constructor's name at the source")
    source: Source = "own"
    space: str = Field(description="a packaged space or a YAML file")
    arch: str | None = Field(
        None,
        description="the network in that space; none: the architecture named like the space, or the largest",
    )
    changes: dict[str, Any] = Field({}, description="fields of the space that differ at this source")
    mean: tuple[float, ...] = Field(description="subtracted from each channel of an image in [0, 1]")
    std: tuple[PositiveFloat, ...] = Field(
        description="each channel is divided by this after the subtraction"
    )
    size: int = Field(ge=1, description="side of the images in pixels")
    crop: float = Field(0.875, gt=0, le=1, description="that side over the image's side before the crop")
    interpolation: Interpolation = "bicubic"
    licence: str = Field("unknown", description="of the weights, as the source says")
    url: str = Field("", description="page of the source")
    package: str | None = Field(
        None, description="name on the package index, if a package brings the weights"
    )
    module: str | None = Field(None, description="what that package installs")

    @model_validator(mode="after")
    def _check_normalisation(self) -> Self:
        if len(self.mean) != len(self.std):
            raise ValueError("mean and std must have as many numbers, one for each channel")
        return self

    @property
    def flags(self) -> str:
        """The flags of `ofa.convert` that mean this network."""
        return f"--from {self.source} --as {self.name}"

    @property
    def preprocessing(self) -> Preprocessing:
        """What the weights want of images."""
        return Preprocessing(
            mean=self.mean, std=self.std, crop_share=self.crop, interpolation=self.interpolation
        )

    def load_space(self) -> Space:
        """The space with the changes of this source."""
        space = load_space(self.space)
        if not self.changes:
            return space
        return validate(Space, merge(space.model_dump(), self.changes), f"the changes of '{self.name}'")

    def find_arch(self, space: Space) -> Arch:
        """The network as an architecture of `space`, which `load_space` returned."""
        return find_arch(space, self.arch_name(space))

    def arch_name(self, space: Space) -> str:
        """The name by which `find_arch` of `ofa.space.published` knows the network in `space`."""
        if self.arch is not None:
            return self.arch
        return space.name if space.name in published(space) else "largest"


@cache
def packaged_networks() -> tuple[Network, ...]:
    """All entries of `networks/*.yaml`."""
    found = []
    for path in sorted((Path(str(files("ofa.weights"))) / "networks").glob("*.yaml")):
        # Each file is a list, unlike recipes and spaces, which are mappings.
        for values in yaml.safe_load(path.read_text(encoding="utf-8")):
            found.append(validate(Network, values, str(path)))
    return tuple(found)


def networks_of(source: Source) -> list[Network]:
    """The packaged entries of one source."""
    return [network for network in packaged_networks() if network.source == source]


def find_networks(source: Source, name: str) -> list[Network]:
    """The networks of a source that `name` may mean.

    Args:
        source: whose networks they are.
        name: of the network at its source, of the package that brings it, or of its space; or a YAML file
            with an entry of the user's own.

    Returns:
        At least one: the only network of that name, else all of that space.

    Raises:
        UserError: there is none.
    """
    if name.endswith((".yaml", ".yml")):
        return [_own_network(Path(name))]
    of_source = networks_of(source)
    package = _index_name(name)
    named = [network for network in of_source if network.name == name or network.package == package]
    found = named or [network for network in of_source if network.space == name]
    if found:
        return found
    elsewhere = [network for network in packaged_networks() if network.name == name]
    if elsewhere:
        remedy = f"take {elsewhere[0].flags}."
    elif of_source:
        known = {network.package or network.name for network in of_source}
        close = nearest(name, known)
        remedy = close if close.startswith("valid") else f"{close} All are: {', '.join(sorted(known))}."
    else:
        remedy = "give a YAML file that describes it."
    raise UserError(f"There is no network '{name}' of source '{source}'; {remedy}")


def _own_network(path: Path) -> Network:
    """The entry in a file of the user's own, whose space and architecture may be files beside it."""
    values = {"name": path.stem} | read_yaml(path)
    for field in ("space", "arch"):
        beside = path.parent / str(values.get(field, ""))
        if beside.is_file():
            values[field] = str(beside)
    return validate(Network, values, str(path))


def _index_name(name: str) -> str:
    """A package's name as indexes write it: to pip, `a_b`, `A.b` and `a-b` are one package."""
    return re.sub(r"[-_.]+", "-", name).lower()
