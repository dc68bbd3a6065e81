"""How near each decision of a search was to another one."""

from collections.abc import Iterator, Mapping

from torch import Tensor

from oneshot.ending.record import Decision
from oneshot.methods.sampled.architecture import Architecture
from oneshot.spaces.search_space import SearchSpace

Choice = tuple[int, int]  # (edge, operation)


def decisions(
    space: SearchSpace, architecture: Architecture, probabilities: Mapping[str, Tensor]
) -> tuple[Decision, ...]:
    """Each edge of an architecture, and by how much its weight is above what would have been taken instead.

    Args:
        space: what was searched.
        architecture: what was read off.
        probabilities: the weights that it was read off, (E, O) for each kind of cell.

    Returns:
        None of an edge where another choice weighs more: something else decided, such as the cost that a
        search was aimed at. Where edges are left out they depend on each other, so then none at all.
    """
    found = []
    for kind, choices in architecture.items():
        weight_EO = probabilities[kind].tolist()
        for edge, operation in choices:
            rival = max(
                _rivals(space, kind, choices, edge, operation),
                key=lambda choice: weight_EO[choice[0]][choice[1]],
                default=None,
            )
            weight = weight_EO[edge][operation]
            margin, named = 1.0, None
            if rival is not None:
                rival_weight = weight_EO[rival[0]][rival[1]]
                if rival_weight > weight and space.keeps is None:
                    continue
                if rival_weight > weight:
                    return ()
                margin = (weight - rival_weight) / weight if weight > 0 else 0.0
                named = f"{space.operations[rival[1]]} from {space.edges[rival[0]][0]}"
            source, target = space.edges[edge]
            found.append(
                Decision(
                    cell=kind,
                    source=source,
                    target=target,
                    operation=space.operations[operation],
                    rival=named,
                    margin=margin,
                )
            )
    return tuple(found)


def _rivals(
    space: SearchSpace, kind: str, choices: tuple[Choice, ...], edge: int, operation: int
) -> Iterator[Choice]:
    """What could take the place of a choice: others on its edge, and those of edges that were not kept."""
    allowed_EO = space.allowed_mask(kind).tolist()
    kept = {kept_edge for kept_edge, _ in choices}
    into = next(entering for entering in space.entering if entering.start <= edge < entering.stop)
    for other in range(into.start, into.stop):
        if other != edge and (space.keeps is None or other in kept):
            continue
        for column, name in enumerate(space.operations):
            # Where edges are left out, none is never read off.
            possible = allowed_EO[other][column] and (space.keeps is None or name != "none")
            if possible and (other, column) not in choices and (other, column) != (edge, operation):
                yield other, column
