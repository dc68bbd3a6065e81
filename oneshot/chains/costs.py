"""What the choices of a chain cost: MACs and parameters in closed form, milliseconds from a latency table."""

import math
from pathlib import Path
from typing import Literal

import numpy as np

from engine.blocks.latency_table import LatencyTable, layer_ms, read_table
from engine.blocks.layers import LayerSpec, cost_of_layer, structure
from engine.config import format_count
from engine.errors import UserError
from engine.statistics import fit_line
from oneshot.chains.layers import ChainCosts, ImageShape, chain_costs
from oneshot.chains.space import ChainSpace

CostKind = Literal["macs", "params", "latency"]
FIT_AT_LEAST = 10  # measured chains that correct the sum of their layers


def costs_of(space: ChainSpace, image: ImageShape, of: CostKind, table: Path | None = None) -> ChainCosts:
    """The costs of every choice.

    Args:
        space: whose layers are costed.
        image: what its chains are built for.
        of: MACs, parameters, or milliseconds of the table.
        table: what `python -m predictors.measure` wrote.

    Raises:
        UserError: there is no table, or it lacks layers of the space.
    """
    if of == "latency":
        if table is None:
            raise UserError(
                "Milliseconds need a latency table; measure one with python -m predictors.measure "
                f"--space {space.name} and name it with --latency-table."
            )
        return latency_costs(space, image, read_table(table), str(table))

    def counted(layer: LayerSpec) -> float:
        macs, params = cost_of_layer(layer)
        return float(macs if of == "macs" else params)

    return chain_costs(space, image, counted)


def latency_costs(space: ChainSpace, image: ImageShape, table: LatencyTable, source: str) -> ChainCosts:
    """Milliseconds of every choice.

    The sum of layers that were timed alone is too small, since they find their data in the processor's cache.
    Where the table has 10 or more whole chains of this space, a scale and an offset correct it.

    Args:
        space: whose layers are looked up; the table may be of another space that has them, too.
        image: what its chains are built for.
        table: milliseconds by layer.
        source: the file, for messages.

    Raises:
        UserError: the table lacks a layer, or its map's size.
    """

    def milliseconds(layer: LayerSpec) -> float:
        ms = layer_ms(table, layer) if structure(layer) in table.blocks else math.nan
        if math.isnan(ms):
            raise UserError(
                f"Latency table '{source}' does not know {structure(layer)} on a map of {layer.size} pixels; "
                f"measure with python -m predictors.measure --space {space.name} --classes {image.classes} "
                f"--channels {image.channels} --resolutions {image.size}."
            )
        return ms

    costs = {image.size: chain_costs(space, image, milliseconds)}
    if table.fingerprint != space.fingerprint:
        return costs[image.size]
    sums, measured = [], []
    for network in table.networks:
        found = space.chain_of_codes(bytes.fromhex(network.codes))
        if found is None:
            continue
        operations, size = found
        if size not in costs:
            costs[size] = chain_costs(space, image._replace(size=size), milliseconds)
        sums.append(costs[size].total(space, operations))
        measured.append(network.ms)
    if len(sums) < FIT_AT_LEAST:
        return costs[image.size]
    scale, offset, _ = fit_line(np.array(sums), np.array(measured))
    layers_EO, constant = costs[image.size]
    return ChainCosts(scale * layers_EO, scale * constant + offset)


def format_chain_cost(of: CostKind, value: float) -> str:
    """`14.8 ms`, `98.7M MACs` or `4.08M parameters`."""
    if of == "latency":
        return f"{value:.3g} ms"
    return f"{format_count(value)} {'MACs' if of == 'macs' else 'parameters'}"
