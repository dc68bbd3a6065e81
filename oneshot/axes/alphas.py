"""The parameters of the architecture, which a search learns beside the weights of the network."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass
class Alphas:
    """Architecture parameters.

    Args:
        operations: (E, O) for each kind of cell.
        edges: (E,) for each kind of cell, where a method weighs edges; else empty.
        controller: what draws architectures instead (ENAS).
        decided: (E, O) for each kind of cell, where decisions come one by one (DARTS-PT): the weights of
            edges that were decided, nan elsewhere; else empty.
    """

    operations: dict[str, Tensor]
    edges: dict[str, Tensor]
    controller: nn.Module | None = None
    decided: dict[str, Tensor] = field(default_factory=dict)

    def all(self) -> list[Tensor]:
        """All parameters, operations first: the order of the optimiser and of a checkpoint."""
        parameters = [*self.operations.values(), *self.edges.values()]
        if self.controller is not None:
            parameters += self.controller.parameters()
        return parameters

    def with_decisions(self, kind: str, weight_EO: Tensor) -> Tensor:
        """The weights of a kind of cell, where edges were decided those of the decision."""
        if kind not in self.decided:
            return weight_EO
        decided_EO = self.decided[kind]
        return torch.where(decided_EO.isnan(), weight_EO, decided_EO)
