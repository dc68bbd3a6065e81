"""Latency of architectures on one device, predicted from a table of what was measured there.

The model is refitted from the table whenever it is read:

    base       the sum of the blocks; without blocks the mean of what other devices' tables predict;
               without those MACs
    affine     base times a scale plus an offset, from 10 or more whole networks: it corrects for reordering
               between blocks, fusion and overheads
    residual   ridge regression on what each stage has (blocks, MACs, map sizes, parameters), from 30 or more
               whole networks; leave-one-out decides its strength

All are sums over layers, so every model becomes one table for each block, and a million architectures are
look-ups.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau
from sklearn.linear_model import Ridge, RidgeCV

from engine.errors import UserError
from engine.seed import numpy_generator
from engine.statistics import Floats
from ofa.cost import cost_of_layer, memory_of_layer
from ofa.layers import CostTable, LayerSpec, cost_tables, total
from ofa.space.codes import Codes, sample_codes
from ofa.space.space import Space
from predictors.latency.kit import structure
from predictors.latency.table import (
    LatencyTable,
    check_networks,
    networks_of,
    read_table,
    space_fingerprint,
)

# How many whole networks a model needs.
AFFINE_AT_LEAST, RESIDUAL_AT_LEAST = 10, 30
STRENGTHS = np.logspace(-1, 6, 15)  # of the penalty of ridge regression
# The median absolute deviation times this is the standard deviation of normally distributed errors.
STD_OF_MAD = 1.4826
Level = Literal["base", "affine", "residual"]


class AdditiveLatency(NamedTuple):
    """Milliseconds of an architecture: an offset plus one entry of each table."""

    offset: float
    tables: tuple[CostTable, ...]

    def predict(self, codes_NF: Codes) -> Floats:
        """(N,) milliseconds of encoded architectures."""
        ms: Floats = total(self.tables, codes_NF)[0] + self.offset
        return ms


class LatencyModel:
    """Predicts latency on the device of `table` for architectures of `space`.

    Args:
        table: what was measured.
        space: whose architectures are predicted; the one of the table.
        level: how much of the table is used at most.

    Raises:
        UserError: the table does not know enough for it.
    """

    def __init__(self, table: LatencyTable, space: Space, level: Level = "residual") -> None:
        self.table, self.space = table, space
        self._range = (min(table.resolutions), max(table.resolutions))
        self._model = fit_latency(table, space, level)

    def predict(self, codes_NF: Codes) -> Floats:
        """(N,) milliseconds of encoded architectures. Resolutions between measured ones are interpolated.

        Raises:
            UserError: a resolution is outside of those measured.
        """
        # Without this check, a block that is looked up outside of measured sizes would be not a number.
        asked = np.array(self.space.resolution)[np.unique(codes_NF[:, 0]) - 1]
        for resolution in asked:
            if not self._range[0] <= resolution <= self._range[1]:
                has = ", ".join(map(str, self.table.resolutions))
                raise UserError(
                    f"The latency table of '{self.table.device}' lacks resolution {resolution}; it has "
                    f"{has}: measure with --resolutions {resolution} too, or search those only."
                )
        return self._model.predict(codes_NF)


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
            "measure again with python -m predictors.measure --space or --run."
        )
    if (table.classes, table.channels) != (classes, channels):
        raise UserError(
            f"{path} is for {table.classes} classes and {table.channels} input channels, not for {classes} "
            f"and {channels}; measure again with python -m predictors.measure --run."
        )
    check_networks(table, space, str(path))
    return LatencyModel(table, space)


def fit_latency(table: LatencyTable, space: Space, level: Level = "residual") -> AdditiveLatency:
    """The model of a table.

    Args:
        table: what was measured.
        space: the space of the table.
        level: how much of the table the model uses at most. It uses less where networks are too few.

    Raises:
        UserError: the table has no blocks, and fewer than 10 networks; or it lacks a block of the space.
    """
    base = _base(table, space)
    codes, ms = networks_of(table)
    if len(ms) < AFFINE_AT_LEAST and not table.blocks:
        raise UserError(
            f"The latency table of '{table.device}' has no blocks and only {len(ms)} networks; "
            f"measure at least {AFFINE_AT_LEAST} with --whole."
        )
    if level == "base" or len(ms) < AFFINE_AT_LEAST:
        return base
    model, kept = _affine(base, codes, ms)
    if level == "residual" and len(ms) >= RESIDUAL_AT_LEAST:
        return _with_residual(model, table, space, codes[kept], ms[kept])
    return model


def _base(table: LatencyTable, space: Space) -> AdditiveLatency:
    make_tables = partial(cost_tables, space, table.classes, table.channels, dtype=np.float64)
    # What is measured on the device itself comes first, then other devices, then no device at all.
    if table.blocks:
        return AdditiveLatency(0.0, tuple(make_tables(partial(_measured_ms, table))))
    if table.others:
        models = [fit_latency(other, space) for other in table.others]
        # Each device counts the same, however slow it is; the affine model finds the scale of this device.
        sample = sample_codes(space, 2000, numpy_generator(0, "devices"))
        weights = [1 / (len(models) * float(model.predict(sample).std())) for model in models]
        return _weighted_sum(models, weights)
    return AdditiveLatency(0.0, tuple(make_tables(_macs_of)))


def _measured_ms(table: LatencyTable, layer: LayerSpec) -> tuple[float]:
    """Milliseconds of a layer, linear in the area of its map between measured sizes, NaN outside of them."""
    name = structure(layer)
    if name not in table.blocks:
        raise UserError(
            f"The latency table of '{table.device}' lacks block {name}; measure again with the same space."
        )
    measured = sorted(table.blocks[name].items())
    areas = [size**2 for size, _ in measured]
    ms = [value for _, value in measured]
    return (float(np.interp(layer.size**2, areas, ms, left=np.nan, right=np.nan)),)


def _macs_of(layer: LayerSpec) -> tuple[float]:
    # No milliseconds: the affine model finds the scale.
    return (cost_of_layer(layer)[0] / 1e8,)


def _weighted_sum(models: Sequence[AdditiveLatency], weights: Sequence[float]) -> AdditiveLatency:
    """A weighted sum of models of one space, whose tables read the same columns."""
    offset = sum(weight * model.offset for weight, model in zip(weights, models, strict=True))
    joined = []
    for same in zip(*[model.tables for model in models], strict=True):
        costs = sum(weight * table.costs for weight, table in zip(weights, same, strict=True))
        joined.append(CostTable(same[0].columns, np.asarray(costs)))
    return AdditiveLatency(offset, tuple(joined))


def _affine(base: AdditiveLatency, codes: Codes, ms: Floats) -> tuple[AdditiveLatency, NDArray[np.bool_]]:
    """Scale and offset by least squares of the relative error, without outliers.

    A scale that comes out negative, from few and noisy networks, is replaced by the ratio of the means.

    Returns:
        The model, and (N,) which networks are no outliers.
    """
    predicted, kept = base.predict(codes), np.ones(len(ms), np.bool_)
    scale = offset = 0.0
    # Outliers pull the fit away and hide others, so they are looked for three times.
    for _ in range(3):
        # Divided by the latency: a millisecond counts more where networks are fast.
        rows = np.stack([predicted[kept], np.ones(kept.sum())], axis=1) / ms[kept, None]
        scale, offset = map(float, np.linalg.lstsq(rows, np.ones(kept.sum()), rcond=None)[0])
        if scale <= 0:
            scale, offset = float(ms[kept].mean() / predicted[kept].mean()), 0.0
        error = (scale * predicted + offset - ms) / ms
        error = error - np.median(error)  # the fit itself may be off as long as outliers are in it
        # Five standard deviations, estimated by a median, which outliers hardly change.
        kept = np.abs(error) <= 5 * STD_OF_MAD * np.median(np.abs(error)) + 1e-9
    model = _weighted_sum([base], [scale])
    return AdditiveLatency(model.offset + offset, model.tables), kept


def stage_features(space: Space, classes: int, channels: int) -> tuple[tuple[CostTable, ...], list[int]]:
    """What each stage of an architecture has, as tables of (blocks, MACs, numbers in memory, parameters).

    Args:
        space: of the architectures.
        classes: outputs of the classifier.
        channels: of the input images.

    Returns:
        The tables, and for each table the group whose features it adds to: 0 is the stem, i + 1 is stage i,
        and the last one is the head.
    """

    def features(layer: LayerSpec) -> tuple[float, float, float, float]:
        macs, params = cost_of_layer(layer)
        # Any units will do: `_with_residual` scales the features.
        return 1.0, macs / 1e8, memory_of_layer(layer) / 1e6, params / 1e6

    found = tuple(cost_tables(space, classes, channels, features, dtype=np.float64))
    # Only the blocks of a stage read its depth.
    group_of = {space.column_index["depth", i]: i + 1 for i in range(len(space.stages))}
    groups = []
    for i, table in enumerate(found):
        stages = [group_of[column] for column in table.columns if column in group_of]
        if stages:
            groups.append(stages[0])
        elif i == 0:
            groups.append(0)  # the stem, whose table comes first
        else:
            groups.append(len(space.stages) + 1)  # the head
    return found, groups


def _with_residual(
    model: AdditiveLatency, table: LatencyTable, space: Space, codes: Codes, ms: Floats
) -> AdditiveLatency:
    """`model` plus ridge regression on what it leaves, in the features of the stages."""
    found, groups = stage_features(space, table.classes, table.channels)
    width, stages = found[0].costs.shape[-1], max(groups) + 1

    def matrix(rows: Codes) -> Floats:
        X = np.zeros((len(rows), stages, width))
        for part, group in zip(found, groups, strict=True):
            X[:, group] += total([part], rows).T
        return X.reshape(len(rows), -1)

    # Features are scaled by how much they vary in the space, and not in the few networks that were measured.
    typical = matrix(sample_codes(space, 2000, numpy_generator(0, "features")))
    spread = typical.std(axis=0)
    varies = spread > 1e-9 * (1 + np.abs(typical).max(axis=0))
    # A feature that is the same everywhere gets no weight; the inner `where` keeps 0 out of the division.
    scale = np.where(varies, 1 / np.where(varies, spread, 1), 0)
    X, left = matrix(codes) * scale, ms - model.predict(codes)
    ridge = Ridge(_strength(X, left)).fit(X, left)
    # The regression is linear, so its weights and the scale of the features fold into tables of milliseconds.
    weights = (ridge.coef_ * scale).reshape(stages, width)
    corrections = []
    for part, group in zip(found, groups, strict=True):
        corrections.append(CostTable(part.columns, (part.costs @ weights[group])[..., None]))
    return _weighted_sum([model, AdditiveLatency(float(ridge.intercept_), tuple(corrections))], [1, 1])


def _strength(X: Floats, y: Floats) -> float:
    """The strongest ridge penalty whose leave-one-out error is within one standard error of the least.

    Such a model is as good as the best one, as far as the networks can tell, and it changes the model that it
    corrects least.
    """
    errors = RidgeCV(STRENGTHS, store_cv_results=True).fit(X, y).cv_results_
    worse = errors - errors[:, [errors.mean(axis=0).argmin()]]
    as_good = worse.mean(axis=0) <= worse.std(axis=0) / np.sqrt(len(y))
    return float(STRENGTHS[np.flatnonzero(as_good)[-1]])


class LatencyQuality(NamedTuple):
    """How well a model predicts networks that it did not see.

    error: mean of |predicted - measured| / measured.
    tau: Kendall's tau-b of predicted and measured latencies.
    """

    error: float
    tau: float


def cross_validate_latency(
    table: LatencyTable, space: Space, level: Level, folds: int = 5
) -> LatencyQuality | None:
    """Quality of a model of this table on the networks of the table, each predicted from the other folds.

    Args:
        table: what was measured.
        space: the space of the table.
        level: how much of the table the model uses at most.
        folds: how many folds.

    Returns:
        None if the other folds hold fewer than 10 networks to fit to.
    """
    codes, ms = networks_of(table)
    fold_of = numpy_generator(0, "latency folds").permutation(len(ms)) % folds
    if len(ms) * (folds - 1) // folds < AFFINE_AT_LEAST:
        return None
    predicted = np.empty_like(ms)
    for fold in range(folds):
        held_out = fold_of == fold
        others = tuple(table.networks[i] for i in np.flatnonzero(~held_out))
        model = fit_latency(table.model_copy(update={"networks": others}), space, level)
        predicted[held_out] = model.predict(codes[held_out])
    error = float(np.mean(np.abs(predicted - ms) / ms))
    return LatencyQuality(error, float(kendalltau(predicted, ms).statistic))
