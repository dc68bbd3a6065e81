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
from oneshot.nasbench201.baselines import reference_lines
from oneshot.nasbench201.table import AccuracyTable, Dataset
from oneshot.searcher import Searcher
from oneshot.spaces.cells import find_space
from oneshot.spaces.costs import edge_costs, published_shape
from oneshot.spaces.genotype import Genotype

LARGE = 96  # images with sides of so many pixels and more get the stem of ImageNet


def print_introduction(searcher: Searcher) -> None:
    """Print what is searched on what."""
    method, state, objective = searcher.method, searcher.state, searcher.state.objective
    how = "sampled"
    if method.has_architecture_step:
        how = f"{method.order} order" if method.level == "bilevel" else "single level"
    print(
        f"method {method.name} ({how}) on space {state.space.name}; "
        f"search network of {format_count(count_parameters(objective.network))} parameters"
    )
    steps = objective.steps(0)
    print(f"{objective.about}; {searcher.epochs} epochs of {steps} steps; device {state.device}")


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
    where = " in each stage" if space.name == "nasbench201" else ""
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
    words = ["--genotype", path, *_retrain_flags(space, data), "--out", f"{path}-retrained"]
    return shlex.join(["python", "-m", "oneshot.retrain", *map(str, words)])


def _retrain_flags(space: str, data: AnyData) -> list[Any]:
    """The flags of the recipe and of the data."""
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
