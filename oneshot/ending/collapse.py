"""Signs that a search collapses: too many skip connections, or a sharp minimum.

DARTS's search likes skip connections more the longer it runs, since they help the shared network to train,
not the cell that is read off. RobustDARTS (2020, arXiv:1909.09656) watches the dominant eigenvalue of the
validation loss's Hessian in the architecture.
"""

from oneshot.axes.penalty import BetaDecay
from oneshot.axes.relaxation import Simplex
from oneshot.chains.genotype import ChainGenotype
from oneshot.chains.operation import SKIP
from oneshot.chains.space import CHAIN
from oneshot.methods.method import Method
from oneshot.spaces.genotype import AnyGenotype, Cell

# RobustDARTS's rule compares two means of eigenvalues; lengths are in epochs.
WINDOW = 5  # in each mean
BACK = 4  # between the two means
NOT_BEFORE = 10  # no stop earlier
FACTOR = 1.3  # the growth that counts as a collapse


def skips(genotype: AnyGenotype) -> dict[str, int]:
    """Skip connections of each kind of cell; of a chain its skipped layers."""
    if isinstance(genotype, ChainGenotype):
        return {CHAIN: genotype.layers.count(SKIP)}
    return {kind: _count_skips(cell) for kind, cell in genotype.cells.items()}


def _count_skips(cell: Cell) -> int:
    count = 0
    for edges in cell.nodes:
        count += sum(name == "skip_connect" for name, _ in edges)
    return count


def warning(genotype: AnyGenotype, method: Method) -> str | None:
    """One sentence where half of a cell's edges or more are skip connections.

    The reduction cell may have any number of them: at stride 2 a skip connection has weights.
    """
    # A chain may be as short as its target asks for.
    if isinstance(genotype, ChainGenotype):
        return None
    for kind, cell in genotype.cells.items():
        edges, count = sum(len(edges) for edges in cell.nodes), _count_skips(cell)
        if kind != "reduce" and count * 2 >= edges:
            which = "cell" if kind == "cell" else f"{kind} cell"
            return (
                f"{count} of the {edges} edges of the {which} are skip connections: the search may be "
                f"collapsing; try {_remedies(method)}."
            )
    return None


def _remedies(method: Method) -> str:
    """The remedies against a collapse that this method accepts, as part of a sentence."""
    others = " or ".join(name for name in ("darts_minus", "beta_darts") if name != method.name)
    remedies = [f"--method {others}"]
    # Advice that the method would refuse is no advice.
    has_decay = any(isinstance(penalty, BetaDecay) for penalty in method.penalties)
    if not has_decay and not isinstance(method.relaxation, Simplex):
        remedies.append("--penalties beta_decay on this method")
    remedies.append("fewer --epochs")
    if method.has_eigenvalue:
        remedies.append("or --watch-every 1 --stop-at-collapse")
    return ", ".join(remedies)


def epoch_to_return_to(eigenvalues: list[float]) -> int | None:
    """RobustDARTS's rule: the epoch (from 0) whose architecture to take; None: the search goes on.

    The rule stops when the mean of the last 5 eigenvalues is more than 1.3 times what it was 4 epochs ago,
    not before epoch 10, and goes back to those 4 epochs ago.

    Args:
        eigenvalues: one for each epoch so far.
    """
    epoch = len(eigenvalues) - 1
    # Both windows must be full.
    if epoch < NOT_BEFORE or epoch - BACK - WINDOW + 1 < 0:
        return None
    now, before = _mean_until(eigenvalues, epoch), _mean_until(eigenvalues, epoch - BACK)
    # A negative eigenvalue belongs to a maximum, which has no sharpness to grow.
    return epoch - BACK if before > 0 and now / before > FACTOR else None


def _mean_until(eigenvalues: list[float], epoch: int) -> float:
    """The mean eigenvalue of the last WINDOW epochs up to `epoch`."""
    return sum(eigenvalues[epoch - WINDOW + 1 : epoch + 1]) / WINDOW
