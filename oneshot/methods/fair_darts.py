"""FairDARTS: Eliminating Unfair Advantages in Differentiable Architecture Search (2020, arXiv:1911.12126)."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from oneshot.axes.derivation import derive_genotype
from oneshot.axes.geometry import Adam, Geometry
from oneshot.axes.penalty import Penalty, ZeroOne
from oneshot.axes.relaxation import Relaxation, Sigmoid
from oneshot.axes.weight_sgd import WeightSgd
from oneshot.methods.method import PUBLISHED, Method
from oneshot.spaces.genotype import AnyGenotype, Cell, Edge, Genotype
from oneshot.spaces.search_space import SearchSpace
from oneshot.state import SearchState


class FairDarts(Method):
    """Operations do not compete: each has a sigmoid of its own, which a loss drives to 0 or 1.

    What a node keeps must also weigh at least `threshold`. Settings are those of the released search.
    """

    name: Literal["fair_darts"] = "fair_darts"
    relaxation: Relaxation = Sigmoid()
    penalties: tuple[Penalty, ...] = (ZeroOne(),)
    geometry: Geometry = Adam(lr=3e-3, betas=(0.9, 0.999))
    exclude_none: bool = True
    threshold: float = Field(0.85, ge=0, lt=1, description="least weight of an operation that is kept")
    batch_size: int = 128
    sgd: WeightSgd = WeightSgd(lr=0.005, lr_min=0.001)
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "darts_s3": {"exclude_none": False},  # where it is one of three
        "recurrent": PUBLISHED["recurrent"],
    }

    def genotype(self, state: SearchState) -> AnyGenotype:
        """At most two edges a node (in a space of whole cells, all), of those that reach the threshold.

        A cell of which nothing would be left is read off without: a search begins with all weights at 0.5.
        """
        found = super().genotype(state)
        if not isinstance(found, Genotype):
            return found
        weights = self.probabilities(state.space, state.alphas)
        cells = {}
        for kind, cell in found.cells.items():
            kept = self._above_threshold(state.space, cell, weights[kind])
            cells[kind] = cell if kept is None else kept
        return Genotype(space=found.space, cells=cells)

    def doubts(self, space: SearchSpace, probabilities: Mapping[str, Tensor]) -> list[str]:
        """The cells that are read off without the threshold."""
        found = derive_genotype(space, dict(probabilities), self.derivation)
        # A chain has no threshold.
        if not isinstance(found, Genotype):
            return []
        doubts = []
        columns = [column for column, name in enumerate(space.operations) if name != "none"]
        for kind, cell in found.cells.items():
            weight_EO = probabilities[kind]
            if self._above_threshold(space, cell, weight_EO) is not None:
                continue
            which = "cell" if kind == "cell" else f"{kind} cell"
            strongest = float(weight_EO[:, columns].max())
            why = (
                f"no operation of the {which} reached the threshold {self.threshold:g} (the strongest weighs "
                f"{strongest:.2f})"
            )
            if strongest >= self.threshold:
                why = (
                    f"the operations of the {which} that reached the threshold {self.threshold:g} read only "
                    "nodes without edges"
                )
            doubts.append(
                f"{why}, so the largest weights were read off; raise --epochs, or lower --method.threshold"
            )
        return doubts

    def _above_threshold(self, space: SearchSpace, cell: Cell, weight_EO: Tensor) -> Cell | None:
        """The cell without the edges below the threshold; None if nothing is left."""
        nodes: list[tuple[Edge, ...]] = []
        empty: set[int] = set()
        any_strong = False
        for target, edges in enumerate(cell.nodes, start=space.inputs):
            kept: list[Edge] = []
            for name, source in edges:
                row = weight_EO[space.edges.index((source, target))]
                strong = float(row[space.operations.index(name)]) >= self.threshold
                any_strong = any_strong or strong
                if space.keeps is None:
                    # Every edge of such a cell has an operation, and none is one.
                    kept.append((name if strong else "none", source))
                elif strong and source not in empty:
                    # A node without edges has nothing to pass on.
                    kept.append((name, source))
            if not kept:
                empty.add(target)
            nodes.append(tuple(kept))
        output = tuple(state for state in cell.output if state not in empty)
        return Cell(nodes=tuple(nodes), output=output) if any_strong and output else None
