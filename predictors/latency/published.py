"""Latency tables that other projects have published, read as tables of ours.

The projects are Once-for-all (2020, arXiv:1908.09791) and ProxylessNAS (2019, arXiv:1812.00332).
"""

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from engine.blocks.head import HeadSpec
from engine.blocks.kind import BlockSpec
from engine.blocks.latency_table import LatencyTable, Noise
from engine.blocks.layers import LayerSpec, structure
from engine.blocks.sizes import halve
from engine.blocks.stem import StemSpec
from engine.blocks.table import block_kind
from engine.config import read_yaml
from engine.errors import UserError
from ofa.space.space import Space, load_space, packaged_spaces
from predictors.latency.kit import distinct_layers
from predictors.latency.table import space_fingerprint

PUBLISHED_CLASSES = 1000  # the published tables know no other number


def read_published(paths: tuple[Path, ...], device: str, space: Space, channels: int = 3) -> LatencyTable:
    """The tables that OFA and ProxylessNAS published, as one table.

    They are YAML files that hold for each layer a mean in milliseconds: one file, or several for several
    resolutions. They are for 1,000 classes. The keys of OFA say whether a layer has squeeze-and-excitation
    and hard swish; those of ProxylessNAS say nothing of them, and its layers have neither.

    Args:
        paths: the YAML files.
        device: the name of the device, for the table.
        space: whose layers are looked up.
        channels: of the input images.

    Raises:
        UserError: the files lack layers of this space at every resolution.
    """
    known: dict[str, float] = {}
    for path in paths:
        for key, entry in read_yaml(path).items():
            # Without the suffix that only OFA writes: a layer that has neither is the same in both tables.
            known[re.sub(r"-se:0-hs:0$", "", key)] = _mean(entry, f"{path}, {key}")
    blocks, lacking = _published_blocks(known, space, channels)
    resolutions = [r for r in space.resolution if _is_complete(blocks, space, r, channels)]
    if not resolutions:
        example = lacking[max(lacking)]  # of the layer with the largest map
        raise UserError(
            f"{paths[0]} has no resolution at which space '{space.name}' is complete; it lacks, for example, "
            f"{example}{_others(known, space, channels)}."
        )
    return LatencyTable(
        device=device,
        runtime="unknown",
        threads=1,
        clock="unknown",
        space=space.name,
        fingerprint=space_fingerprint(space),
        classes=PUBLISHED_CLASSES,
        channels=channels,
        resolutions=tuple(resolutions),
        noise=Noise(rounds=1, reliability=None, relative=None),
        blocks=blocks,
    )


def _published_blocks(
    known: Mapping[str, float], space: Space, channels: int
) -> tuple[dict[str, dict[int, float]], dict[int, str]]:
    """The layers of a space that published entries are known of.

    Returns:
        Milliseconds by structure and by the side of the input map; by the side of the map an entry that is
        missing there.
    """
    blocks: dict[str, dict[int, float]] = {}
    lacking: dict[int, str] = {}
    for layer in distinct_layers(space, PUBLISHED_CLASSES, channels):
        keys = published_keys(layer)
        # Where a table has no AvgPool2D, it is part of Logits and costs nothing here.
        absent = [key for key in keys if key not in known and not key.startswith("AvgPool2D")]
        if absent:
            lacking[layer.size] = absent[0]
        else:
            blocks.setdefault(structure(layer), {})[layer.size] = sum(known.get(key, 0.0) for key in keys)
    return blocks, lacking


def _others(known: Mapping[str, float], space: Space, channels: int) -> str:
    """The end of a sentence that names the packaged spaces that a table is for, such as another width."""
    fitting = []
    for name in packaged_spaces():
        other = load_space(name)
        if name == space.name:
            continue
        # Of most spaces no published table knows the kinds of block.
        with suppress(UserError):
            blocks, _ = _published_blocks(known, other, channels)
            if any(_is_complete(blocks, other, r, channels) for r in other.resolution):
                fitting.append(f"--space {name}")
    return f"; it is a table for {' or '.join(fitting)}" if fitting else ""


def _is_complete(
    blocks: Mapping[str, Mapping[int, float]], space: Space, resolution: int, channels: int
) -> bool:
    """Whether every layer that an architecture at this resolution can have is among `blocks`."""
    values = space.model_dump() | {"resolution": (resolution,)}
    single = Space.model_validate(values)
    for layer in distinct_layers(single, PUBLISHED_CLASSES, channels):
        if layer.size not in blocks.get(structure(layer), {}):
            return False
    return True


def _mean(entry: Any, where: str) -> float:
    value = entry.get("mean") if isinstance(entry, dict) else entry
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise UserError(f"{where} has no mean in milliseconds.")
    return float(value)


def published_keys(layer: LayerSpec) -> list[str]:
    """The entries of a published table whose latencies make up the layer.

    AvgPool2D may be absent from a table: it is then part of Logits.

    Raises:
        UserError: the published tables know no such block.
    """
    size = layer.size
    match layer:
        case StemSpec():
            if layer.kernel != 3 or layer.pool:
                raise UserError(
                    "Published latency tables have no stems with a pool or a 7x7 kernel; measure this space "
                    "instead."
                )
            out = _map(halve(size, layer.stride), layer.width)
            return [f"Conv-input:{_map(size, layer.channels)}-output:{out}"]
        case BlockSpec():
            published_key = block_kind(layer.block).published_key
            if published_key is None:
                raise UserError(
                    f"Published latency tables have no {layer.block} blocks; measure this space instead."
                )
            return [published_key(layer)]
        case HeadSpec():
            wide = _map(size, layer.wide)
            first = f"Conv_1-input:{_map(size, layer.inp)}-output:{wide}"
            if not layer.width:
                return [first, f"Logits-input:{wide}-output:{layer.classes}"]
            pooled, features = _map(1, layer.wide), _map(1, layer.width)
            return [
                first,
                f"AvgPool2D-input:{wide}-output:{pooled}",
                f"Conv_2-input:{pooled}-output:{features}",
                f"Logits-input:{features}-output:{layer.classes}",
            ]


def _map(side: int, channels: int) -> str:
    return f"{side}x{side}x{channels}"
