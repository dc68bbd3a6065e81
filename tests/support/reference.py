"""The published codes' recorded networks: which of our tensors holds which of theirs."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from oneshot.spaces.cells import CellSpace

PASSES = {
    "0": ("1", "2", "3"),
    "1": ("5", "6", "7"),
}  # of a separable convolution: where theirs keeps depthwise, pointwise, BatchNorm
STATISTIC = {"mean": "running_mean", "var": "running_var"}


def recorded(name: str) -> dict[str, Any]:
    """A recorded file; the test that asks for it is skipped where the folder of reference values is
    absent."""
    folder = Path(os.environ.get("NAS_DATA", "")).parent / "reference" / "search"
    if not (folder / f"{name}.pt").exists():
        pytest.skip("no reference values beside the folder that NAS_DATA names")
    return torch.load(folder / f"{name}.pt", weights_only=True)


def darts_names(network: nn.Module, space: CellSpace) -> dict[str, list[str]]:
    """For each of our tensors the names of theirs, one block of rows each."""
    operations = list(space.operations)
    return {
        name: _darts_name(name, space, operations)
        for name in network.state_dict()
        if not name.endswith("num_batches_tracked")
    }


def pr_darts_names(network: nn.Module, space: CellSpace, operations: list[str]) -> dict[str, list[str]]:
    """The same for PR-DARTS's code, whose `operations` have another order and whose modules other names."""

    def renamed(name: str) -> str:
        found = re.fullmatch(r"(cells\.\d+)\._ops\.(\d+)\._ops\.(\d+)\.(.*)", name)
        if found is None:
            return re.sub(
                r"preprocess(\d)\.conv_(\d)", lambda m: f"preprocess{m[1]}.convs.{int(m[2]) - 1}", name
            )
        source, target = space.edges[int(found[2])]
        rest = re.sub(r"conv_(\d)", lambda m: f"convs.{int(m[1]) - 1}", found[4])
        if operations[int(found[3])].startswith("sep"):
            number = int(rest.split(".")[1])
            rest = f"op_{'a' if number < 4 else 'b'}.op.{number - 4 * (number > 4)}.{rest.split('.', 2)[2]}"
        return f"{found[1]}.edges.{target - 2}<-{source}._ops.{found[3]}.{rest}"

    plain = {
        name: _darts_name(name, space, operations)
        for name in network.state_dict()
        if not name.endswith("num_batches_tracked")
    }
    return {ours: [renamed(name) for name in blocks] for ours, blocks in plain.items()}


def _darts_name(name: str, space: CellSpace, operations: list[str]) -> list[str]:
    parts = name.split(".")
    if parts[0] in ("stem", "classifier"):
        return [name]
    if parts[0] == "norm":
        return [f"lastact.0.{parts[1]}"]
    cell = f"cells.{parts[1]}"
    if parts[2] == "inputs":
        role = {"conv": "op.1", "norm": "op.2", "skip": "", "even": "conv_1", "odd": "conv_2"}
        middle = ".".join(filter(None, (role.get(part, STATISTIC.get(part, part)) for part in parts[4:])))
        middle = middle.replace("op.2.", "bn.") if parts[4] == "skip" else middle
        suffix = ".weight" if parts[-1] in ("even", "odd") else ""
        return [f"{cell}.preprocess{parts[3]}.{middle}{suffix}"]
    source, operation = int(parts[4]), parts[6]
    leaving = [e for e, (start, _) in enumerate(space.edges) if start == source]
    return [f"{cell}._ops.{e}._ops.{operations.index(operation)}.{_role(parts[5:])}" for e in leaving]


def _role(parts: list[str]) -> str:
    """Of own.<operation>.<...> or pool_norm.<operation>.<statistic>."""
    if parts[0] == "pool_norm":
        return f"1.{STATISTIC[parts[2]]}"
    if parts[2] in ("even", "odd"):
        return {"even": "conv_1", "odd": "conv_2"}[parts[2]] + ".weight"
    if parts[1] == "skip_connect":
        return f"bn.{STATISTIC[parts[3]]}"
    depth, point, norm = PASSES[parts[3]]
    return {
        "depth": f"op.{depth}.weight",
        "point": f"op.{point}.weight",
        "norm": f"op.{norm}.{STATISTIC.get(parts[-1], '')}",
    }[parts[2]]


def nasbench201_names(network: nn.Module, space: CellSpace) -> dict[str, list[str]]:
    """The same for the NAS-Bench-201 network, whose code gives search convolutions a bias that does
    nothing."""
    return {
        name: _nasbench201_name(name, space)
        for name in network.state_dict()
        if not name.endswith("num_batches_tracked")
    }


def _nasbench201_name(name: str, space: CellSpace) -> list[str]:
    parts = name.split(".")
    if parts[0] != "blocks":
        return [name.replace("norm.", "lastact.0.")]
    if parts[2] != "parallel_edges":
        role = {
            "conv1": "conv_a.op.1",
            "norm1": "conv_a.op.2",
            "conv2": "conv_b.op.1",
            "norm2": "conv_b.op.2",
            "shortcut": "downsample.1",
        }
        return [f"cells.{parts[1]}.{role[parts[2]]}.{parts[3]}"]
    column = space.operations.index(parts[5])
    leaving = [(start, end) for start, end in space.edges if start == int(parts[3])]
    return [f"cells.{parts[1]}.edges.{end}<-{start}.{column}.op.1.weight" for start, end in leaving]


def theirs(names: dict[str, list[str]], values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors as ours: stacked, edge by edge; a pool's statistics, the same for every edge, once."""
    return {
        ours: values[blocks[0]] if "pool_norm" in ours else torch.cat([values[block] for block in blocks])
        for ours, blocks in names.items()
        if blocks[0] in values
    }
