"""The networks of a latency table, as rows of codes of the space that it was measured for."""

import hashlib
import json
import re

import numpy as np

from engine.blocks.latency_table import LatencyTable
from engine.errors import UserError, shortened
from engine.statistics import Floats
from ofa.space.codes import Codes, canonical
from ofa.space.space import Space


def space_fingerprint(space: Space) -> str:
    """A name of the choices of a space that decide latency: spaces of equal fingerprint share tables."""
    # Names, and how weights are stored or normalised, change no latency.
    choices = space.model_dump(mode="json", exclude={"name", "source", "bn_eps", "kernels"})
    return hashlib.blake2b(json.dumps(choices, sort_keys=True).encode(), digest_size=8).hexdigest()


def networks_of(table: LatencyTable) -> tuple[Codes, Floats]:
    """The measured networks as rows of codes (N, F) and milliseconds (N,)."""
    codes = [np.frombuffer(bytes.fromhex(network.codes), np.uint8) for network in table.networks]
    return np.array(codes, np.uint8), np.array([network.ms for network in table.networks])


def row_of_codes(text: str, space: Space) -> Codes | None:
    """The row of codes (F,) that a text writes in hexadecimal; None if no architecture of `space` has it."""
    if re.fullmatch("([0-9a-f]{2})+", text) is None:
        return None
    row = np.frombuffer(bytes.fromhex(text), np.uint8)
    if len(row) != len(space.columns) or (row > np.array(space.cardinalities)).any():
        return None
    # Depths come before the blocks that they switch on, and no depth is 0.
    always = [i for i, column in enumerate(space.columns) if column.field not in ("kernel", "expand")]
    if not row[always].all() or not np.array_equal(canonical(space, row[None])[0], row):
        return None
    return row


def check_networks(table: LatencyTable, space: Space, source: str) -> None:
    """Refuse a table with a network that is not of `space`, also among the tables of other devices.

    Raises:
        UserError: there is one.
    """
    for number, network in enumerate(table.networks, start=1):
        if row_of_codes(network.codes, space) is None:
            raise UserError(
                f"{source}: the codes of network {number}, {shortened(network.codes)}, are of no "
                f"architecture of space '{space.name}'; measure again with python -m predictors.measure."
            )
    for other in table.others:
        check_networks(other, space, source)
