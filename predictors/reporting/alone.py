"""What the supernet was worth: selected subnets beside the same networks trained alone, on test images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table

from engine.command.table import show
from engine.compute.precision import float32_as_exported
from engine.config import counted, format_count, validate
from engine.data.augment import resize
from engine.errors import UserError
from engine.plot.canvas import safe
from engine.run import Run, read_json
from ofa.calibration import prepare
from ofa.space.arch import Arch, single_arch_space
from ofa.subnet import Subnet
from ofa.supernet import Supernet
from ofa.trained import SupernetModel, TrainedSupernet, load_network
from ofa.tuned import find_tuned, tuned_or_taken
from predictors.reporting.comparison import points_apart
from predictors.reporting.findings import SelectedSubnet
from predictors.reporting.html import html_cell, html_table, small_print


class AloneNetwork(NamedTuple):
    """A run that trained one architecture alone, and the selected subnets of that architecture.

    arch: in the space of that single architecture, of which `network` is.
    """

    name: str
    network: Supernet
    arch: Arch
    images: int
    epochs: int
    same: list[SelectedSubnet]


class AloneComparison(NamedTuple):
    """A selected subnet and the same architecture trained alone.

    state: what the subnet's weights are: as taken from the supernet, or tuned.
    points: subnet minus alone, in points of test accuracy.
    std: standard error of `points` from the number of test images.
    """

    budget: str
    state: str
    macs: int
    test_accuracy: float
    alone: str
    alone_epochs: int
    alone_accuracy: float
    points: float
    std: float

    def clause(self) -> str:
        """The comparison in the middle of a sentence about the subnet."""
        where = "better" if self.points >= 0 else "worse"
        epochs = counted(self.alone_epochs, "epoch")
        return (
            f"{abs(self.points):.1f} ±{self.std:.1f} points {where} than the same network trained alone for "
            f"{epochs} ({self.alone})"
        )


class Worth(NamedTuple):
    """All such comparisons, and their mean with its standard error, in points."""

    comparisons: list[AloneComparison]
    points: float
    std: float

    def sentence(self) -> str:
        """What the supernet was worth."""
        count = len({comparison.budget for comparison in self.comparisons})
        who = f"the {count} chosen subnets are on average"
        if count == 1:
            # There may be other chosen subnets, whose networks were not trained alone.
            who = f"{self.comparisons[0].budget} is"
        than = "the same network trained alone" if count == 1 else "the same networks trained alone"
        where = "better" if self.points >= 0 else "worse"
        said = f"On test images {who} {abs(self.points):.1f} ± {self.std:.1f} points {where} than {than}"
        # Two standard errors: about one in twenty such differences is larger by chance.
        if abs(self.points) <= 2 * self.std:
            said += "; so small a difference may be chance"
        return said + "."

    def of_budget(self, budget: str) -> str:
        """A sentence about one subnet, without its full stop; empty if its network was not trained alone."""
        clauses = [c.clause() for c in self.comparisons if c.budget == budget]
        return f"It is {', and '.join(clauses)}" if clauses else ""


def find_alone(trained: TrainedSupernet, selected: Sequence[SelectedSubnet]) -> list[Path]:
    """Finished runs beside this one that trained a selected architecture alone, on the same images.

    Beside: in the folder that holds the folder of the run. What is damaged or does not fit is passed over,
    since nobody named it.
    """
    run = trained.run.path.resolve()
    found = []
    try:
        beside = sorted(run.parent.iterdir())
    except OSError:
        # A folder may be closed to this user although the run inside it is open.
        return []
    for path in beside:
        # Most folders are told by their few files; the weights are read only of those that fit.
        if path == run or path.is_symlink() or not Run(path).finished or not (path / "model.json").is_file():
            continue
        try:
            model = validate(SupernetModel, read_json(path / "model.json"), str(path / "model.json"))
        except UserError:
            continue
        is_alone = model.arch is not None and model.tuned is None
        if is_alone and model.same_images(trained.model) and _same_network(model, trained, selected):
            found.append(path)
    return found


def _same_network(
    model: SupernetModel, trained: TrainedSupernet, selected: Sequence[SelectedSubnet]
) -> list[SelectedSubnet]:
    """The selected subnets whose architecture a run trained alone."""
    return [s for s in selected if single_arch_space(trained.space, s.arch) == model.space]


def read_alone(
    paths: Sequence[Path], trained: TrainedSupernet, selected: Sequence[SelectedSubnet]
) -> list[AloneNetwork]:
    """Open runs that trained one architecture alone.

    Args:
        paths: their folders.
        trained: the supernet, whose images they must have been trained on.
        selected: what predictors.select selected; each run must have trained one of these architectures.

    Raises:
        UserError: a folder is no such run.
    """
    found = []
    for path in dict.fromkeys(path.resolve() for path in paths):
        run = Run.open(path, "--alone")
        model, network = load_network(path)
        if model.arch is None:
            raise UserError(
                f"Run '{path}' is a supernet, not one architecture trained alone; train one with python -m "
                f"ofa.train --arch {trained.run.path}/selected/{selected[0].name}.json."
            )
        if model.tuned is not None:
            raise UserError(
                f"Run '{path}' was tuned from a supernet, so it is not a network trained alone; name one of "
                "python -m ofa.train --arch."
            )
        if not model.same_images(trained.model):
            raise UserError(
                f"Run '{path}' was trained on other images than '{trained.run.path}', or normalised them "
                f"otherwise; train it with the same --data (also --data.mean and --data.std) and --seed "
                f"{trained.seed}."
            )
        same = _same_network(model, trained, selected)
        if not same:
            names = ", ".join(subnet.name for subnet in selected)
            raise UserError(
                f"Run '{path}' trained an architecture that is not selected in '{trained.run.path}'; train "
                f"one of those that are: {names}."
            )
        epochs = int(run.config["epochs"])
        name, images = path.resolve().name, model.calibration_images
        found.append(AloneNetwork(name, network.to(trained.device), model.arch, images, epochs, same))
    return found


def compare_with_alone(networks: Sequence[AloneNetwork], trained: TrainedSupernet) -> Worth | None:
    """Measure each network and the selected subnets of its architecture on the same test images.

    A subnet that was tuned is measured with its tuned weights. None without networks.
    """
    comparisons, differences = [], []
    for network in networks:
        alone = prepare(network.network, network.arch, trained.data, network.images)
        alone_hits = test_hits(alone, trained)
        for selected in network.same:
            tuned = find_tuned(trained.run.path, selected.name, selected.arch)
            subnet = tuned_or_taken(trained, selected.arch, tuned)
            hits = test_hits(subnet, trained)
            points, std = points_apart(hits, alone_hits)
            differences.append(hits - alone_hits)
            comparison = AloneComparison(
                budget=selected.name,
                state=str(tuned) if tuned else "as taken from the supernet",
                macs=selected.record.macs,
                test_accuracy=float(hits.mean()),
                alone=network.name,
                alone_epochs=network.epochs,
                alone_accuracy=float(alone_hits.mean()),
                points=points,
                std=std,
            )
            comparisons.append(comparison)
    if not comparisons:
        return None
    # Image by image: all networks see the same images, so their errors are not independent of each other.
    return Worth(comparisons, *points_apart(np.mean(differences, 0), np.zeros(len(differences[0]))))


@torch.no_grad()
@float32_as_exported()
def test_hits(subnet: Subnet, trained: TrainedSupernet) -> NDArray[np.float64]:
    """1 for each test image (N,) that the subnet classifies correctly, else 0."""
    hits = []
    for x, y in trained.data.evaluation_batches("test"):
        logits = subnet(resize(x, subnet.arch.resolution))
        hits.append((logits.argmax(1) == y).cpu().numpy())
    return np.concatenate(hits).astype(np.float64)


def print_worth(worth: Worth) -> None:
    """Print the comparisons as a table, and the sentence."""
    table = Table("budget", "weights", "MACs", "test", "alone", "epochs", "test of alone", "points")
    for c in worth.comparisons:
        table.add_row(
            c.budget,
            c.state,
            format_count(c.macs),
            f"{c.test_accuracy:.2%}",
            c.alone,
            str(c.alone_epochs),
            f"{c.alone_accuracy:.2%}",
            f"{c.points:+.1f} ± {c.std:.1f}",
        )
    show(table)
    print(worth.sentence())


def worth_section(worth: Worth | None) -> list[str]:
    """The part of the page about networks trained alone; empty where there is no such run."""
    if worth is None:
        return []
    rows = []
    for c in worth.comparisons:
        row = [
            html_cell(c.budget, c.state),
            html_cell(format_count(c.macs)),
            html_cell(f"{100 * c.test_accuracy:.1f}%"),
            html_cell(f"{100 * c.alone_accuracy:.1f}%", f"{c.alone}, {counted(c.alone_epochs, 'epoch')}"),
            html_cell(f"{c.points:+.1f} ±{c.std:.1f}"),
        ]
        rows.append(row)
    return [
        "<h2>The same networks trained alone</h2>",
        f"<p>{safe(worth.sentence())}</p>",
        html_table(["chosen", "MACs", "test", "alone (test)", "points"], rows),
        small_print(
            "Trained alone: the same architecture from random weights, without a supernet. ±: the standard "
            "error that comes from the number of test images; another seed of training differs by more."
        ),
    ]


def worth_as_json(worth: Worth) -> dict[str, Any]:
    """The same as data, for alone.json."""
    rows = [comparison._asdict() for comparison in worth.comparisons]
    return {"points": worth.points, "std": worth.std, "comparisons": rows}
