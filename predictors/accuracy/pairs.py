"""What stage 2 keeps in a run folder: measured subnets (pairs.jsonl) and selected ones (selected/)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, Field, PositiveInt

from engine.checkpoint import check_digests
from engine.config import Config, validate
from engine.errors import UserError
from engine.run import read_json, read_lines, selected_files
from ofa.space.arch import Arch
from ofa.space.codes import encode
from ofa.trained import EvaluationPrecision, TrainedSupernet, precision_flag, run_flag
from ofa.tuned import nothing_selected, select_again

Accuracy = Annotated[float, Field(ge=0, le=1)]


class Pair(Config):
    """One measured subnet. val_accuracy in [0, 1]; macs: multiply-accumulates; params: trainable scalars."""

    arch: Arch
    val_accuracy: Accuracy
    macs: PositiveInt
    params: PositiveInt
    weights_sha256: str = Field("", description="of the supernet's weights.safetensors; empty: not known")


class Selected(BaseModel):
    """The fields of a selected/*.json file that export and report need."""

    # BaseModel instead of Config, which would refuse the other fields of the file.
    arch: Arch
    macs: PositiveInt
    predicted_accuracy: float | None = None
    val_accuracy: Accuracy
    # Empty of the candidates in a file, which are of the same weights as the selected subnet.
    weights_sha256: str = ""


def pairs_path(run: Path, precision: EvaluationPrecision = "float32") -> Path:
    """Where a run keeps its pairs; those of each precision in a file of their own, so that none are mixed."""
    return run / ("pairs.jsonl" if precision == "float32" else f"pairs.{precision}.jsonl")


def read_pairs(run: Path, precision: EvaluationPrecision = "float32") -> list[Pair]:
    """The pairs of a run, each architecture once; an empty list if nothing was collected yet.

    Of lines about the same architecture the first counts.

    Args:
        run: the run folder.
        precision: in which they were measured.

    Raises:
        UserError: a line is damaged, or of other weights than the run has now.
    """
    path = pairs_path(run, precision)
    found: dict[Arch, Pair] = {}
    stated: dict[str, str] = {}
    for i, row in enumerate(read_lines(path), start=1):
        pair = validate(Pair, row, f"{path}, line {i}")
        stated[f"{path}, line {i}"] = pair.weights_sha256
        found.setdefault(pair.arch, pair)
    flags = f"{run_flag(run)}{precision_flag(precision)} --overwrite"
    again = f"measure again with python -m predictors.collect{flags}"
    check_digests(run, stated, again)
    return list(found.values())


def check_pairs(
    pairs: Sequence[Pair], trained: TrainedSupernet, precision: EvaluationPrecision = "float32"
) -> None:
    """Refuse pairs that are not of this supernet: another space, or other MACs than an architecture has.

    Args:
        pairs: what `read_pairs` returned.
        trained: the run.
        precision: in which they were measured, which tells their file.

    Raises:
        UserError: there is one; the sentence says which, without lines of an architecture that came before.
    """
    if not pairs:
        return
    path, rows = pairs_path(trained.run.path, precision), []
    for number, pair in enumerate(pairs, start=1):
        try:
            rows.append(encode(trained.space, pair.arch))
        except UserError as error:
            raise UserError(f"{path}, pair {number}: {error} Remove its line, or collect again.") from None
    macs_N = trained.macs(np.stack(rows))
    for number, (pair, macs) in enumerate(zip(pairs, macs_N.tolist(), strict=True), start=1):
        if pair.macs != macs:
            raise UserError(
                f"{path}, pair {number}: macs = {pair.macs}, but this architecture has {macs}; remove its "
                "line, or collect again."
            )


def read_selected(run: Path) -> list[tuple[str, Selected]]:
    """The subnets that predictors.select selected in a run, as (budget, subnet), fewest MACs first.

    Raises:
        UserError: nothing is selected yet, or a file is damaged, or of other weights than the run has now.
    """
    found, stated = [], {}
    for name, file in selected_files(run).items():
        subnet = validate(Selected, read_json(file), str(file))
        found.append((name, subnet))
        stated[str(file)] = subnet.weights_sha256
    check_digests(run, stated, select_again(run))
    if not found:
        raise UserError(f"{nothing_selected(run)}.")
    return sorted(found, key=_macs)  # those of equal MACs stay in the order of their budgets


def _macs(selected: tuple[str, Selected]) -> int:
    return selected[1].macs
