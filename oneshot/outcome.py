"""What a search says: what it is about, the cell that it found, and the command that trains it."""

import shlex
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as Grid

from engine.compute.macs import count_parameters
from engine.config import format_count
from engine.data.folder import ImageFolder
from engine.data.npz import Npz
from engine.data.sources import AnyData
from engine.data.text import Grammar, TextFolder
from engine.data.torchvision_sets import Torchvision
from oneshot.nasbench201.baselines import reference_lines
from oneshot.nasbench201.table import Dataset, Table
from oneshot.spaces.cells import find_space
from oneshot.spaces.costs import edge_costs
from oneshot.spaces.expected_cost import published_shape
from oneshot.spaces.genotype import Genotype
from oneshot.state import Searching

LARGE = 96  # pixels from which images get the stem of ImageNet


def introduce(searching: Searching) -> None:
    """Print what is searched on what."""
    method, task = searching.method, searching.task
    size = format_count(count_parameters(task.network))
    how = f"{method.order} order" if method.level == "bilevel" else "single level"
    print(
        f"method {method.name} ({how if method.learns else 'sampled'}) on space {searching.space.name}; "
        f"search network of {size} parameters"
    )
    print(f"{task.about}; {searching.epochs} epochs of {task.steps(0)} steps; device {searching.device}")


def describe(genotype: Genotype) -> None:
    """Print its cells, and what the published final network of them costs."""
    space = find_space(genotype.space)
    grid = Grid("cell", "node", "edges: operation from state")
    for kind, cell in genotype.cells.items():
        for node, edges in enumerate(cell.nodes, start=space.inputs):
            grid.add_row(kind, str(node), ", ".join(f"{name} {source}" for name, source in edges))
    Console().print(grid)
    if space.name != "recurrent":
        shape = published_shape(space)
        macs, params = (
            format_count(edge_costs(space, count, shape).total(genotype)) for count in ("macs", "params")
        )
        where = " in each stage" if space.name == "nasbench201" else ""
        print(
            f"with {shape.cells} cells{where} of {shape.channels} channels, as published for CIFAR-10: "
            f"{params} parameters, {macs} MACs"
        )


def compare(genotype: Genotype, table: Table, dataset: Dataset, budget: int, seed: int) -> None:
    """Print its true accuracy beside what other searchers reach."""
    lines = {"this choice": table.accuracy(genotype, dataset)} | reference_lines(table, dataset, budget, seed)
    grid = Grid(f"true accuracy on {dataset}, %", "")
    for name, value in lines.items():
        grid.add_row(name.replace("_", " "), f"{value:.2f}")
    Console().print(grid)


def retrain_command(path: Path, space: str, data: AnyData) -> str:
    """`python -m oneshot.retrain` with the recipe of the space and the data of the search."""
    words = ["--genotype", path, *_retrain_flags(space, data), "--out", f"{path}-retrained"]
    return shlex.join(["python", "-m", "oneshot.retrain", *map(str, words)])


def _retrain_flags(space: str, data: AnyData) -> list[Any]:
    on_cifar = "oneshot/retrain_nasbench201" if space == "nasbench201" else "oneshot/retrain_cifar"
    match data:
        case Npz():
            return ["--config", on_cifar, "--data", data.name, "--data.path", data.path]
        # another section than the recipe's: what the recipe says of the data is said again
        case Torchvision():
            cutout = [] if space == "nasbench201" else ["--data.cutout", 16]
            return [
                "--config",
                on_cifar,
                "--data",
                data.name,
                "--data.path",
                data.path,
                "--data.val",
                0.02,
                *cutout,
            ]
        case ImageFolder():
            recipe = on_cifar if data.size < LARGE or space == "nasbench201" else "oneshot/retrain_imagenet"
            return [
                "--config",
                recipe,
                "--data",
                data.name,
                "--data.path",
                data.path,
                "--data.size",
                data.size,
            ]
        case TextFolder():
            return ["--data", data.name, "--data.path", data.path]
        case Grammar():
            return ["--data", data.name, "--data.sentences", data.sentences]
    return []
