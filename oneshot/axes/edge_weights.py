"""What a search method tells a network about the edges of one kind of cell: how much of which operation."""

from typing import NamedTuple

from torch import Tensor

Runs = tuple[tuple[int, ...], ...]


class Mixture(NamedTuple):
    """Edge e passes on edge_E[e] * (sum over o of weight_EO[e, o] * operation o of x) + offset_E[e] + skip *
    x.

    Args:
        weight_EO: weight of each operation.
        runs: for each edge the operations that run, where a method samples; the others count as absent. None:
            all run.
        edge_E: weight of each edge (PC-DARTS); None: 1.
        offset_E: added to each number of an edge's output; its value is 0, only its gradient matters (GDAS).
        skip: weight of a skip connection beside the mixture (DARTS-); at stride 2 a factorized reduction of
            its own.
    """

    weight_EO: Tensor
    runs: Runs | None = None
    edge_E: Tensor | None = None
    offset_E: Tensor | None = None
    skip: Tensor | None = None
