"""The parameters of the architecture, which a search learns beside the weights of the network."""

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass
class Alphas:
    """Architecture parameters.

    Args:
        operations: (E, O) for each kind of cell.
        edges: (E,) for each kind of cell, where a method weighs edges; else empty.
        controller: what draws architectures instead (ENAS).
    """

    operations: dict[str, Tensor]
    edges: dict[str, Tensor]
    controller: nn.Module | None = None

    def all(self) -> list[Tensor]:
        """All parameters, operations first: the order of the optimiser and of a checkpoint."""
        parameters = [*self.operations.values(), *self.edges.values()]
        if self.controller is not None:
            parameters += self.controller.parameters()
        return parameters
