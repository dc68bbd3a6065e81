"""What a search method gives to a network: the weight of every operation on each edge of a kind of cell."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from engine.compute.device import send

ActiveOperations = tuple[tuple[int, ...], ...]  # for each edge, the columns of its operations that run


class EdgeWeights(NamedTuple):
    """The weights of one kind of cell in one forward pass.

    Edge e passes on edge_E[e] * (sum over o of weight_EO[e, o] * operation o of x) + offset_E[e] + skip * x.

    Args:
        weight_EO: weight of each operation.
        active: for each edge the operations that run, where a method samples; the others count as absent.
            None: all run.
        edge_E: weight of each edge (PC-DARTS); None: 1.
        offset_E: added to each number of an edge's output; its value is 0, only its gradient matters (GDAS).
        skip: weight of a skip connection beside the operations (DARTS-); at stride 2 it is a factorized
            reduction with weights of its own.
        noise: seed of what a forward draws, so that each of one step gets the same: the operation noise
            (RobustDARTS's S4), dropout.
        skip_dropout: rate of the dropout after skip connections of stride 1 (P-DARTS), in training mode.
        active_EO: `active` as booleans on the device, where the device drew them.
        expected_EO: probabilities by which the expected cost is weighed, where weights are 0 or 1
            (ProxylessNAS); None: the weights.
    """

    weight_EO: Tensor
    active: ActiveOperations | None = None
    edge_E: Tensor | None = None
    offset_E: Tensor | None = None
    skip: Tensor | None = None
    noise: int = 0
    skip_dropout: float = 0.0
    active_EO: Tensor | None = None
    expected_EO: Tensor | None = None

    def runs(self) -> Tensor:
        """(E, O) booleans on the device: which operations run, where a method samples."""
        if self.active_EO is not None:
            return self.active_EO
        assert self.active is not None, "all operations run"
        return send(active_mask(self.active, self.weight_EO.shape[1]), self.weight_EO.device)


# For each kind of cell: what a network gets. A cell may also have weights of its own, under `own_key`.
NetworkEdgeWeights = Mapping[str, EdgeWeights]


def own_key(kind: str, number: int) -> str:
    """Where the weights are that only the cell with this number in the network has."""
    return f"{kind} {number}"


def weights_of_cell(edge_weights: NetworkEdgeWeights, kind: str, number: int) -> EdgeWeights:
    """Those of the cell with this number in the network, else those of its kind."""
    own = edge_weights.get(own_key(kind, number))
    found = edge_weights[kind] if own is None else own
    # Every cell has noise of its own.
    return found._replace(noise=found.noise + number)


def active_mask(active: ActiveOperations, operations: int) -> Tensor:
    """(E, O) booleans on CPU: which of `operations` operations run on each edge."""
    # Built on CPU: a write for each edge would be a launch each on a GPU.
    mask = torch.zeros(len(active), operations, dtype=torch.bool)
    for edge, columns in enumerate(active):
        mask[edge, list(columns)] = True
    return mask


def read_active(edge_weights: Mapping[str, EdgeWeights]) -> dict[str, EdgeWeights]:
    """The same edge weights with `active`, where a relaxation drew it on the device.

    The host must know what to run. It waits for the device once, for all kinds of cell together.
    """
    drawn = {kind: found.active_EO for kind, found in edge_weights.items() if found.active is None}
    masks = [mask_EO for mask_EO in drawn.values() if mask_EO is not None]
    if not masks:
        return dict(edge_weights)
    rows = iter(torch.cat(masks).tolist())
    read = {}
    for kind, found in edge_weights.items():
        if found.active is None and found.active_EO is not None:
            active = [_true_columns(next(rows)) for _ in found.active_EO]
            found = found._replace(active=tuple(active))
        read[kind] = found
    return read


def _true_columns(row: list[bool]) -> tuple[int, ...]:
    return tuple(column for column, runs in enumerate(row) if runs)
