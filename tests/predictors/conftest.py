"""Measured ImageNet accuracies of OFA subnets."""

import ast
import csv
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from ofa.space.arch import Arch
from ofa.space.codes import Codes, canonical, encode
from ofa.space.space import Space, load_space


@pytest.fixture(scope="session")
def imagenet(nas_data: Path) -> tuple[Space, Codes, np.ndarray]:
    """(space, codes, accuracies). All were measured at resolution 224, so the space has no other."""
    return measured(nas_data, "mbnv3w10_evonsga2_acc_macs.csv")


@pytest.fixture(scope="session")
def all_imagenet(nas_data: Path) -> tuple[Space, Codes, np.ndarray]:
    """The same from all files, where each of 1,336 different subnets has the mean of its measurements."""
    space, codes, y = measured(nas_data, "*.csv")
    different, which = np.unique(codes, axis=0, return_inverse=True)
    return space, different, np.bincount(which, y) / np.bincount(which)


@pytest.fixture(scope="session")
def imagenet_searches(nas_data: Path) -> tuple[Space, list[tuple[Codes, np.ndarray]]]:
    """(space, (codes, accuracies) of each of three searches, in the order in which it measured them)."""
    searches = []
    for path in sorted((nas_data / "ofa_measured").glob("*.csv")):
        space, codes, y = measured(nas_data, path.name)
        searches.append((codes, y))
    return space, searches


def measured(nas_data: Path, files: str) -> tuple[Space, Codes, np.ndarray]:
    named = load_space("ofa_mbv3")
    space = Space.model_validate(
        {name: getattr(named, name) for name in Space.model_fields} | {"resolution": (224,)}
    )
    rows = []
    for path in sorted((nas_data / "ofa_measured").glob(files)):
        with path.open() as file:
            rows += [
                (ast.literal_eval(r["Sub-network"]), float(r["Top-1 Acc (%)"]) / 100)
                for r in csv.DictReader(file)
            ]
    width = (16, 16, 24, 40, 80, 112, 160, 1280)
    archs = [
        Arch(resolution=224, width=width, depth=(1, *a["d"]), kernel=(3, *a["ks"]), expand=(1, *a["e"]))
        for a, _ in rows
    ]
    return space, np.stack([encode(space, a) for a in archs]), np.array([accuracy for _, accuracy in rows])


@pytest.fixture(scope="session")
def everything(tiny: Space) -> Codes:
    """All architectures of the tiny space."""
    return np.unique(
        canonical(tiny, np.array(list(product(*(range(1, n + 1) for n in tiny.cardinalities))), np.uint8)),
        axis=0,
    )
