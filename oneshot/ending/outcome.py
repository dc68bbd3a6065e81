"""What a search says: what it is about, the cell that it found, and the command that trains it."""

import shlex
from pathlib import Path
from typing import Any

from rich.table import Table as Grid

from engine.command.table import plain_console
from engine.compute.macs import count_parameters
from engine.config import format_count
from engine.data.folder import ImageFolder
from engine.data.npz import Npz
from engine.data.sources import AnyData
from engine.data.text import Grammar, TextFolder
from engine.data.torchvision_sets import Torchvision
from oneshot.chains.genotype import ChainGenotype
from oneshot.chains.target import TargetReport
from oneshot.nasbench201.baselines import reference_lines
from oneshot.nasbench201.table import AccuracyTable, Dataset
from oneshot.objectives.images import ImageObjective
from oneshot.objectives.objective import Objective
from oneshot.searcher import Searcher
from oneshot.spaces.cells import SPACES, find_space, is_own_space
from oneshot.spaces.costs import edge_costs, published_shape
from oneshot.spaces.genotype import AnyGenotype, Genotype

CELL_SPACES = tuple(space.name for space in SPACES)
# What is said of a search whose two levels learn from the same images.
LEVELS = {"single": "single level", "released": "single level, in turn as released"}
LARGE = 96  # images with sides of so many pixels and more get the stem of ImageNet


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
    print(f"{objective.about}; {_epochs(searcher)} of {steps} steps; device {state.device}")


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
    return f"{searcher.epochs} epochs" + (f" and {tuning} between decisions" if tuning else "")


def print_genotype(genotype: Genotype) -> None:
    """Print its cells, and what the published final network of them costs."""
    space = find_space(genotype.space)
    grid = Grid("cell", "node", "edges: operation from state")
    for kind, cell in genotype.cells.items():
        for node, edges in enumerate(cell.nodes, start=space.inputs):
            grid.add_row(kind, str(node), ", ".join(f"{name} {source}" for name, source in edges))
    plain_console().print(grid)
    # Costs are known for networks of images only.
    if space.name == "recurrent":
        return
    shape = published_shape(space)
    macs = format_count(edge_costs(space, "macs", shape).total(genotype))
    params = format_count(edge_costs(space, "params", shape).total(genotype))
    where = " in each stage" if space.graph == "nasbench201" else ""
    print(
        f"with {shape.cells} cells{where} of {shape.channels} channels, as published for CIFAR-10: "
        f"{params} parameters, {macs} MACs"
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
    space = find_space(space).graph if is_own_space(space) else space
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
            large = data.size >= LARGE and space != "nasbench201"
            recipe = "oneshot/retrain_imagenet" if large else small
            named = ["--data", data.name, "--data.path", data.path, "--data.size", data.size]
            return ["--config", recipe, *named]
        case TextFolder():
            return ["--data", data.name, "--data.path", data.path]
        case Grammar():
            return ["--data", data.name, "--data.sentences", data.sentences]
    return []


def _chain_flags(data: AnyData) -> list[Any]:
    """The flags of a chain's recipe and of the data."""
    match data:
        case Npz():
            return ["--config", "oneshot/retrain_chain_small", "--data", data.name, "--data.path", data.path]
        case Torchvision() | ImageFolder():
            large = isinstance(data, ImageFolder) and data.size >= LARGE
            recipe = "oneshot/retrain_chain" if large else "oneshot/retrain_chain_small"
            named = ["--data", data.name, "--data.path", data.path]
            size = ["--data.size", data.size] if isinstance(data, ImageFolder) else ["--data.val", 0.02]
            return ["--config", recipe, *named, *size]
    return []
