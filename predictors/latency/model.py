"""Latency of architectures on one device, predicted from a table of what was measured there.

What is predicted, and what a limit is about, is the median run time of one image. A prediction comes with the
bound that nine of ten architectures keep. It follows from the whole networks of the table, each predicted
from the others: split conformal prediction (Lei et al., Distribution-free predictive inference for
regression, 2018, arXiv:1604.04173), one-sided and in relative errors, because those are alike for small and
large networks.
"""

from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau

from engine.blocks.latency_table import LatencyTable, read_table
from engine.errors import UserError
from engine.seed import numpy_generator
from engine.statistics import Floats, conformal_quantile
from ofa.space.codes import Codes
from ofa.space.space import Space
from predictors.latency.additive import (
    AFFINE_AT_LEAST,
    Level,
    NetworkFit,
    covered_resolutions,
    fit_latency,
)
from predictors.latency.table import check_networks, networks_of, space_fingerprint

FOLDS = 10  # of the cross-validation; 10 networks, the fewest, are each predicted from the 9 others


class LatencyModel:
    """Predicts latency on the device of `table` for architectures of `space`.

    The model is refitted from the table. Nothing is known of resolutions outside of those measured: there
    both the prediction and the bound are infinite, so that no limit allows them.

    Args:
        table: what was measured.
        space: whose architectures are predicted; the one of the table.
        level: how much of the table is used at most.

    Raises:
        UserError: the table does not know enough for it.
    """

    def __init__(self, table: LatencyTable, space: Space, level: Level = "residual") -> None:
        self.table, self.space, self._level = table, space, level
        self.resolutions = covered_resolutions(table, space)
        self._model = fit_latency(table, space, level)

    def predict(self, codes_NF: Codes) -> Floats:
        """(N,) milliseconds of the median run of encoded architectures.

        Resolutions between measured ones are interpolated; outside of them the prediction is infinite.
        """
        return self._model.predict(codes_NF)

    def bound(self, codes_NF: Codes) -> Floats:
        """(N,) milliseconds that the median run of nine of ten architectures keeps.

        This is what `--latency` limits. Where no margin is known it is the prediction itself.
        """
        return self.predict(codes_NF) * (1 + (self.margin or 0.0))

    def slow_run(self, codes_NF: Codes) -> Floats:
        """(N,) predicted milliseconds that nine of ten runs stay under, if the table knows slow runs.

        It is the prediction times what slow runs of whole networks typically take, as a share of the median.
        """
        return self.predict(codes_NF) * float(np.median(self._slow_ratios))

    @property
    def knows_slow_runs(self) -> bool:
        """Whether the table has the 90th percentiles of whole networks."""
        return bool(self._slow_ratios)

    @property
    def _slow_ratios(self) -> list[float]:
        return [n.p90_ms / n.ms for n in self.table.networks if n.p90_ms is not None]

    @cached_property
    def margin(self) -> float | None:
        """By how much, as a share, the bound is above the prediction; none with fewer than 10 networks."""
        left = cross_validated(self.table, self.space, self._level)
        if left is None:
            return None
        # A network far off all others was disturbed while it was measured, as in the fit.
        predicted = left.predicted[left.kept]
        errors = (left.measured[left.kept] - predicted) / np.abs(predicted)
        return max(conformal_quantile(errors), 0.0)

    def notes(self) -> list[str]:
        """What a user of this model has to know, in one line each."""
        found = []
        device = self.table.device
        if len(self.resolutions) < len(self.space.resolution):
            low, high = self.resolutions[0], self.resolutions[-1]
            sides = f"{low} px" if low == high else f"{low} to {high} px"
            found.append(f"latency table {device} covers {sides}: only these are searched")
        if self.margin is None:
            found.append(
                f"latency table {device} has {len(self.table.networks)} whole networks, and a margin needs "
                f"{AFFINE_AT_LEAST}: predicted latencies are compared with limits as they are"
            )
        else:
            found.append(
                f"latency is the median run time on {device}; 9 of 10 subnets take at most "
                f"{self.margin:.1%} more than predicted, and limits hold with that margin"
            )
        return found


def load_latency(path: Path, space: Space, classes: int, channels: int) -> LatencyModel:
    """The model of the table at `path` for a space, a number of classes and of input channels.

        latency = load_latency(Path("latency/my-laptop.json"), space, classes=10, channels=3)
        milliseconds = latency.predict(codes)

    Raises:
        UserError: the file is missing or damaged, of another version, of another space or other classes, or
            too small.
    """
    table = read_table(path)
    if table.fingerprint != space_fingerprint(space):
        raise UserError(
            f"{path} was measured for space '{table.space}', whose choices are not those of '{space.name}'; "
            "measure again with python -m predictors.measure --run RUN."
        )
    if (table.classes, table.channels) != (classes, channels):
        raise UserError(
            f"{path} is for {table.classes} classes and {table.channels} input channels, not for {classes} "
            f"and {channels}; measure again with python -m predictors.measure --run RUN."
        )
    check_networks(table, space, str(path))
    return LatencyModel(table, space)


class CrossValidatedLatency(NamedTuple):
    """The whole networks of a table, each predicted from others.

    predicted, measured: milliseconds (N,).
    kept: (N,) which networks are no outliers of the model that is fitted to all of them.
    """

    predicted: Floats
    measured: Floats
    kept: NDArray[np.bool_]

    @property
    def error(self) -> float:
        """Mean of |predicted - measured| / measured."""
        return float(np.mean(np.abs(self.predicted - self.measured) / self.measured))

    @property
    def tau(self) -> float:
        """Kendall's tau-b of predicted and measured latencies."""
        return float(kendalltau(self.predicted, self.measured).statistic)


def cross_validated(table: LatencyTable, space: Space, level: Level) -> CrossValidatedLatency | None:
    """The networks of a table, each predicted by a model that was fitted to the other folds.

    Args:
        table: what was measured.
        space: the space of the table.
        level: how much of the table the model uses at most.

    Returns:
        None if the table holds fewer than 10 networks.
    """
    codes, ms = networks_of(table)
    if len(ms) < AFFINE_AT_LEAST:
        return None
    fold_of = numpy_generator(0, "latency folds").permutation(len(ms)) % FOLDS
    # The level is that of the whole table, although a fold has fewer networks: it is judged as it is used.
    networks = NetworkFit(table, space, level)
    _, kept = networks.fit(codes, ms)
    predicted = np.empty_like(ms)
    for fold in range(FOLDS):
        held_out = fold_of == fold
        model, _ = networks.fit(codes[~held_out], ms[~held_out])
        predicted[held_out] = model.predict(codes[held_out])
    return CrossValidatedLatency(predicted, ms, kept)
