"""Where two run folders that should hold the same differ first."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.checkpoint import load_weights
from engine.run import read_lines

# What says when and where a run ran, or how to continue it. The weights say whether state.pt would differ.
NOT_COMPARED = {"env.json", "DONE", "tensorboard", "mlflow.json"}
STATES = ".pt"
# The order in which a run comes to write them: the first difference is the one to look into.
FIRST = ("config.yaml", "model.json", "metrics.jsonl", "teacher.safetensors", "weights.safetensors")


def environment_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What env.json says of two runs and is not the same, such as `torch: 2.11.0, now 2.14.1`.

    Only what both have recorded is compared. The command and `dirty` say nothing about the result.
    """
    found = []
    for name, value in before.items():
        if name == "command" or name not in now:
            continue
        if isinstance(value, Mapping) and isinstance(now[name], Mapping):
            found += environment_differences(value, now[name])
        elif value != now[name] and name != "dirty":
            found.append(f"{name}: {value}, now {now[name]}")
    return found


def compare_runs(old: Path, new: Path) -> dict[str, str]:
    """What differs first in each file of a run that was run again.

    Args:
        old: the run folder.
        new: the folder of the same run, run again. Only its files count: later stages added more to `old`.

    Returns:
        By file, half a sentence on the first difference; empty if there is none. Files are in the order in
        which a run writes them.
    """
    names = []
    for path in sorted(new.rglob("*")):
        name = path.relative_to(new)
        hidden = any(part.startswith(".") for part in name.parts)
        if path.is_file() and not hidden and name.parts[0] not in NOT_COMPARED and name.suffix != STATES:
            names.append(name.as_posix())
    ordered = [name for name in FIRST if name in names]
    ordered += [name for name in names if name not in FIRST]
    return {name: _difference(old / name, new / name) for name in ordered}


def _difference(old: Path, new: Path) -> str:
    if not old.is_file():
        return "is missing in the first run"
    if old.suffix == ".safetensors":
        return weights_difference(load_weights(old), load_weights(new))
    if old.suffix == ".jsonl":
        return lines_difference(read_lines(old), read_lines(new))
    before, now = old.read_bytes(), new.read_bytes()
    if before == now:
        return ""
    equal = 0
    while equal < min(len(before), len(now)) and before[equal] == now[equal]:
        equal += 1
    line = before.count(b"\n", 0, equal) + 1
    return f"differs from byte {equal} on, in line {line}"


def lines_difference(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> str:
    """Half a sentence on the first line and the first value in it that differ; empty if all are equal."""
    for number, (old, new) in enumerate(zip(before, now, strict=False), start=1):
        if old == new:
            continue
        step = f" (step {old['step']})" if "step" in old else ""
        for name in [*old, *new]:
            if old.get(name) != new.get(name):
                return f"line {number}{step}: {name} is {old.get(name)}, now {new.get(name)}"
    if len(before) != len(now):
        return f"has {len(before)} lines, now {len(now)}; the first {min(len(before), len(now))} are the same"
    return ""


def weights_difference(before: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> str:
    """Half a sentence on the first tensor that differs, how many do; empty if all bits are the same."""
    if before.keys() != now.keys():
        name = min(before.keys() ^ now.keys())
        return f"only one of both has the tensor {name}"
    different = [name for name, tensor in before.items() if not _same_bits(tensor, now[name])]
    if not different:
        return ""
    first = different[0]
    old, new = before[first], now[first]
    if old.shape != new.shape or old.dtype != new.dtype:
        return f"{first} is {old.dtype} {tuple(old.shape)}, now {new.dtype} {tuple(new.shape)}"
    largest = float((old.double() - new.double()).abs().max())
    return f"{len(different)} of {len(before)} tensors differ, the first is {first}, by up to {largest:.2g}"


def _same_bits(old: Tensor, new: Tensor) -> bool:
    if old.shape != new.shape or old.dtype != new.dtype:
        return False
    # As bytes, for which a NaN equals itself. A number without axes has no bytes to view: it becomes a row.
    return torch.equal(old.reshape(-1).view(torch.uint8), new.reshape(-1).view(torch.uint8))
