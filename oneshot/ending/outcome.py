"""What a search says: what it is about, the cell that it found, and the command that trains it."""

import shlex
from pathlib import Path
from typing import Any

from rich.table import Table as Grid

from engine.command.table import plain_console
from engine.compute.macs import count_parameters
from engine.config import counted, format_count
from engine.data.folder import ImageFolder
from engine.data.npz import Npz
from engine.data.sources import AnyData
from engine.data.text import Grammar, TextFolder
from engine.data.torchvision_sets import Torchvision
from engine.training import print_left_out
from oneshot.chains.genotype import ChainGenotype
from oneshot.chains.target import TargetReport
from oneshot.ending.record import FinalSize, Outcome
from oneshot.nasbench201.baselines import reference_lines
from oneshot.nasbench201.table import AccuracyTable, Dataset
from oneshot.networks.search import stem_for
from oneshot.objectives.images import ImageObjective
from oneshot.objectives.objective import Objective
from oneshot.searcher import Searcher
from oneshot.spaces.cells import SPACES, find_space, settings_space
from oneshot.spaces.genotype import AnyGenotype, Genotype

CELL_SPACES = tuple(space.name for space in SPACES)
# What is said of a search whose two levels learn from the same images.
LEVELS = {"single": "single level", "released": "single level, in turn as released"}


def print_introduction(searcher: Searcher) -> None:
    """Print what is searched on what."""
    method, state, objective = searcher.method, searcher.state, searcher.state.objective
    how = "sampled"
    if method.has_architecture_step:
        how = LEVELS.get(method.level, f"{method.order} order")
    print(
        f"method {method.name} ({how}) on space {state.space.name}; "
        f"search network of {format_count(count_parameters(objective.network))} parameters"
    )
    steps = objective.steps(0)
    print(f"{objective.about}; {_epochs(searcher)} of {counted(steps, 'step')}; device {state.device}")
    if isinstance(objective, ImageObjective):
        print_left_out(objective.data.size_of(objective.weights_part), objective.batch_size)


def print_found(genotype: AnyGenotype, objective: Objective, report: TargetReport | None) -> None:
    """Print what was found, and how near to a target it is."""
    if isinstance(genotype, ChainGenotype):
        print_chain(genotype, objective)
    else:
        print_genotype(genotype)
    if report is not None:
        print(report.sentence())


def print_chain(genotype: ChainGenotype, objective: Objective) -> None:
    """Print the layers of a chain, and what it costs on the images that were searched on."""
    grid = Grid("channels", "stride", "layers")
    number = 0
    for stage in genotype.space.stages:
        layers = genotype.layers[number : number + stage.layers]
        grid.add_row(str(stage.width), str(stage.stride), " ".join(layers))
        number += stage.layers
    plain_console().print(grid)
    assert isinstance(objective, ImageObjective)
    macs, params = genotype.cost(objective.image)
    size = objective.image.size
    print(f"{format_count(params)} parameters, {format_count(macs)} MACs on images of {size} pixels")


def _epochs(searcher: Searcher) -> str:
    """The epochs of a search and of what follows it, in words."""
    tuning = searcher.total_epochs - searcher.epochs
    return counted(searcher.epochs, "epoch") + (f" and {tuning} between decisions" if tuning else "")


def print_genotype(genotype: Genotype) -> None:
    """Print its cells."""
    space = find_space(genotype.space)
    grid = Grid("cell", "node", "edges: operation from state")
    for kind, cell in genotype.cells.items():
        for node, edges in enumerate(cell.nodes, start=space.inputs):
            grid.add_row(kind, str(node), ", ".join(f"{name} {source}" for name, source in edges))
    plain_console().print(grid)


def print_outcome(outcome: Outcome) -> None:
    """Print what a search knows of what it found, and what makes that doubtful."""
    for size in outcome.sizes:
        _print_size(outcome.space, size)
    _print_quality(outcome)
    made = f"made {counted(outcome.steps, 'step')}, {outcome.steps_an_epoch} an epoch"
    if outcome.architecture_steps is not None:
        made += f", {outcome.architecture_steps} of the architecture"
    counts = [f"{count} ({kind})" for kind, count in outcome.skips.items()]
    # A recurrent cell has no skip connections to count.
    print(made if outcome.space == "recurrent" else f"{made}; skip connections: {', '.join(counts)}")
    if outcome.changes:
        changed = [f"{change.setting} {change.published} -> {change.used}" for change in outcome.changes]
        print(f"changed from {outcome.method}'s settings on {outcome.space}: {', '.join(changed)}")
    for sentence in outcome.warnings:
        print(f"note: {sentence}")


def _print_size(space: str, size: FinalSize) -> None:
    """What the final network costs at one size."""
    costs = f"{format_count(size.params)} parameters, {format_count(size.macs)} MACs"
    if size.image_size is None:
        print(f"with {size.channels} units, as published: {costs} a word")
        return
    # A chain has no size of its own; its costs are printed with its layers.
    if size.cells is None:
        return
    where = " in each stage" if settings_space(space) == "nasbench201" else ""
    how = "as published for CIFAR-10"
    if size.size == "retrain":
        how = f"as the next command builds it, on images of {size.image_size} pixels"
    print(f"with {counted(size.cells, 'cell')}{where} of {size.channels} channels, {how}: {costs}")


def _print_quality(outcome: Outcome) -> None:
    """The quality of the search network and of what was read off it."""
    is_accuracy = outcome.quality == "accuracy"
    half = "on which the weights were trained, too" if outcome.trained_on else "of the architecture's part"
    items = "images" if is_accuracy else "words"

    def shown(value: float) -> str:
        return f"{100 * value:.1f}%" if is_accuracy else f"{value:.1f}"

    error = f" ± {100 * outcome.standard_error:.1f}" if outcome.standard_error is not None else ""
    mixture = ""
    if outcome.search_network is not None:
        whose = "an architecture that was drawn" if outcome.drawn else "the search network"
        mixture = f"{shown(outcome.search_network)} of {whose}, "
    print(
        f"{outcome.quality} on {outcome.measured_on} {items} {half}: {mixture}{shown(outcome.discretised)}"
        f"{error} of what was read off, with the shared weights"
    )


def print_comparison(
    genotype: Genotype, table: AccuracyTable, dataset: Dataset, budget: int, seed: int
) -> None:
    """Print the true accuracy of a choice beside what other searchers reach with `budget` look-ups."""
    lines = {"this choice": table.accuracy(genotype, dataset)} | reference_lines(table, dataset, budget, seed)
    grid = Grid(f"true accuracy on {dataset}, %", "")
    for name, value in lines.items():
        grid.add_row(name.replace("_", " "), f"{value:.2f}")
    plain_console().print(grid)


def retrain_command(path: Path, space: str, data: AnyData) -> str:
    """`python -m oneshot.retrain` with the recipe of the space and the data of the search."""
    # Operations of one's own are trained as those of their base are.
    space = settings_space(space)
    words = ["--genotype", path, *_retrain_flags(space, data), "--out", f"{path}-retrained"]
    return shlex.join(["python", "-m", "oneshot.retrain", *map(str, words)])


def _retrain_flags(space: str, data: AnyData) -> list[Any]:
    """The flags of the recipe and of the data."""
    if space not in CELL_SPACES:
        return _chain_flags(data)
    small = "oneshot/retrain_nasbench201" if space == "nasbench201" else "oneshot/retrain_cifar"
    match data:
        case Npz():
            return ["--config", small, "--data", data.name, "--data.path", data.path]
        case Torchvision():
            # The recipe's data is of another kind, so its settings do not hold here: they are given again.
            cutout = [] if space == "nasbench201" else ["--data.cutout", 16]
            named = ["--data", data.name, "--data.path", data.path, "--data.val", 0.02]
            return ["--config", small, *named, *cutout]
        case ImageFolder():
            large = stem_for(data.size) == "imagenet" and space != "nasbench201"
            recipe = "oneshot/retrain_imagenet" if large else small
            named = ["--data", data.name, "--data.path", data.path, "--data.size", data.size]
            return ["--config", recipe, *named]
        case TextFolder():
            return ["--data", data.name, "--data.path", data.path]
        case Grammar():
            return ["--data", data.name, "--data.sentences", data.sentences]
    return []


def retrain_recipe(space: str, data: AnyData) -> str:
    """The recipe of that command."""
    flags = _retrain_flags(space, data)
    return str(flags[flags.index("--config") + 1]) if "--config" in flags else "oneshot/retrain_digits"


def _chain_flags(data: AnyData) -> list[Any]:
    """The flags of a chain's recipe and of the data."""
    match data:
        case Npz():
            return ["--config", "oneshot/retrain_chain_small", "--data", data.name, "--data.path", data.path]
        case Torchvision() | ImageFolder():
            large = isinstance(data, ImageFolder) and stem_for(data.size) == "imagenet"
            recipe = "oneshot/retrain_chain" if large else "oneshot/retrain_chain_small"
            named = ["--data", data.name, "--data.path", data.path]
            size = ["--data.size", data.size] if isinstance(data, ImageFolder) else ["--data.val", 0.02]
            return ["--config", recipe, *named, *size]
    return []
