"""Signs that a search collapses: too many skip connections, or a sharp minimum.

DARTS's search likes skip connections more the longer it runs, since they help the shared network to train,
not the cell that is read off. RobustDARTS (2020, arXiv:1909.09656) watches the dominant eigenvalue of the
validation loss's Hessian in the architecture.
"""

from oneshot.axes.penalty import BetaDecay
from oneshot.axes.relaxation import Simplex
from oneshot.methods.method import Method
from oneshot.spaces.genotype import Genotype

WINDOW, BACK, FACTOR, NOT_BEFORE = 5, 4, 1.3, 10  # epochs


def skips(genotype: Genotype) -> dict[str, int]:
    """Skip connections of each kind of cell."""
    return {kind: _named(cell.nodes, "skip_connect") for kind, cell in genotype.cells.items()}


def _named(nodes: tuple[tuple[tuple[str, int], ...], ...], operation: str) -> int:
    return sum(name == operation for node in nodes for name, _ in node)


def warning(genotype: Genotype, method: Method) -> str | None:
    """One sentence where half of a cell's edges or more are skip connections; the reduction cell, where they
    have weights, is free."""
    for kind, cell in genotype.cells.items():
        edges, count = sum(map(len, cell.nodes)), _named(cell.nodes, "skip_connect")
        if kind != "reduce" and count * 2 >= edges:
            which = "cell" if kind == "cell" else f"{kind} cell"
            return (
                f"{count} of the {edges} edges of the {which} are skip connections: the search may be "
                f"collapsing; try {_remedies(method)}."
            )
    return None


def _remedies(method: Method) -> str:
    """What helps, among what this method can bear."""
    decays = isinstance(method.relaxation, Simplex) or any(
        isinstance(penalty, BetaDecay) for penalty in method.penalties
    )
    others = " or ".join(name for name in ("darts_minus", "beta_darts") if name != method.name)
    watch = "" if method.samples else ", or --watch-every 1 --stop-at-collapse"
    return (
        f"--method {others}, {'' if decays else '--penalties beta_decay on this method, '}fewer --"
        f"epochs{watch}"
    )


def epoch_to_return_to(eigenvalues: list[float]) -> int | None:
    """RobustDARTS's rule: the epoch (from 0) whose architecture to take, once the smoothed eigenvalue grew
    too much; None: go on.

    eigenvalues: one for each epoch so far. Stops when the mean of the last 5 is more than 1.3 times what it
        was 4 epochs ago, not before
    epoch 10, and goes back to those 4 epochs ago.
    """
    epoch = len(eigenvalues) - 1
    if epoch < NOT_BEFORE or epoch - BACK - WINDOW + 1 < 0:
        return None
    now, before = (sum(eigenvalues[end - WINDOW + 1 : end + 1]) / WINDOW for end in (epoch, epoch - BACK))
    return epoch - BACK if before > 0 and now / before > FACTOR else None
