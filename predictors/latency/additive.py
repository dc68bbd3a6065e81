"""Latency as a sum over layers, fitted to a table of what was measured on a device.

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
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import Ridge, RidgeCV

from engine.blocks.latency_table import LatencyTable, layer_ms
from engine.blocks.layers import LayerSpec, cost_of_layer
from engine.config import counted
from engine.errors import UserError
from engine.seed import numpy_generator
from engine.statistics import Floats, fit_line
from ofa.cost import memory_of_layer
from ofa.layers import CostTable, cost_tables, total
from ofa.space.codes import Codes, sample_codes
from ofa.space.space import Space
from predictors.latency.table import networks_of

# How many whole networks a model needs.
AFFINE_AT_LEAST, RESIDUAL_AT_LEAST = 10, 30
STRENGTHS = np.logspace(-1, 6, 15)  # of the penalty of ridge regression
Level = Literal["base", "affine", "residual"]


class AdditiveLatency(NamedTuple):
    """Milliseconds of an architecture: an offset plus one entry of each table."""

    offset: float
    tables: tuple[CostTable, ...]

    def predict(self, codes_NF: Codes) -> Floats:
        """(N,) milliseconds of encoded architectures."""
        ms: Floats = total(self.tables, codes_NF)[0] + self.offset
        return ms


class NetworkFit:
    """Fits what whole networks correct in the base model of a table.

    Args:
        table: what was measured.
        space: the space of the table.
        level: how much of the table the model uses at most. It uses less where networks are too few.

    Raises:
        UserError: the table has no blocks, and fewer than 10 networks; or it lacks a block of the space.
    """

    def __init__(self, table: LatencyTable, space: Space, level: Level = "residual") -> None:
        count = len(table.networks)
        if count < AFFINE_AT_LEAST and not table.blocks:
            raise UserError(
                f"The latency table of '{table.device}' has no blocks and only {counted(count, 'network')}; "
                f"measure at least {AFFINE_AT_LEAST} with --whole."
            )
        if level == "residual" and count < RESIDUAL_AT_LEAST:
            level = "affine"
        if count < AFFINE_AT_LEAST:
            level = "base"
        self.level: Level = level
        self.base = _base(table, space)
        self._stages = stage_features(space, table.classes, table.channels) if level == "residual" else None

    def fit(self, codes_NF: Codes, ms_N: Floats) -> tuple[AdditiveLatency, NDArray[np.bool_]]:
        """The model that these networks, all of the table or some of them, correct.

        Returns:
            The model, and (N,) which networks are no outliers; those are ignored.
        """
        if self.level == "base":
            return self.base, np.ones(len(ms_N), np.bool_)
        model, kept = _affine(self.base, codes_NF, ms_N)
        if self._stages is None:
            return model, kept
        return _with_residual(model, self._stages, codes_NF[kept], ms_N[kept]), kept


def fit_latency(table: LatencyTable, space: Space, level: Level = "residual") -> AdditiveLatency:
    """The model of a table; infinite at resolutions that the table does not cover.

    Args and errors are those of `NetworkFit`.
    """
    model, _ = NetworkFit(table, space, level).fit(*networks_of(table))
    return _covered(model, space, covered_resolutions(table, space))


def covered_resolutions(table: LatencyTable, space: Space) -> tuple[int, ...]:
    """The resolutions of a space between the smallest and the largest that the table knows.

    Raises:
        UserError: there are none.
    """
    found = set(space.resolution)
    # A table without blocks is corrected from others, and knows no more than each of them.
    for one in (table, *(() if table.blocks else table.others)):
        found &= {r for r in found if min(one.resolutions) <= r <= max(one.resolutions)}
    if not found:
        known = ", ".join(map(str, table.resolutions))
        raise UserError(
            f"The latency table of '{table.device}' is for resolutions {known}, and space '{space.name}' has "
            "none between them; measure again with python -m predictors.measure --resolutions."
        )
    return tuple(sorted(found))


def _covered(model: AdditiveLatency, space: Space, resolutions: Sequence[int]) -> AdditiveLatency:
    """The same model with infinite latency at all other resolutions, so that no limit allows them."""
    unknown = [i for i, r in enumerate(space.resolution) if r not in resolutions]
    column = space.column_index["resolution", 0]
    tables = []
    for columns, costs in model.tables:
        costs = costs.copy()
        if column in columns:
            by_resolution = np.moveaxis(costs, columns.index(column), 0)
            by_resolution[unknown] = np.inf
        tables.append(CostTable(columns, costs))
    return AdditiveLatency(model.offset, tuple(tables))


def _base(table: LatencyTable, space: Space) -> AdditiveLatency:
    make_tables = partial(cost_tables, space, table.classes, table.channels, dtype=np.float64)
    # What is measured on the device itself comes first, then other devices, then no device at all.
    if table.blocks:
        return AdditiveLatency(0.0, tuple(make_tables(partial(_measured_ms, table))))
    if table.others:
        models = [fit_latency(other, space) for other in table.others]
        # Each device counts the same, however slow it is; the affine model finds the scale of this device.
        rng = numpy_generator(0, "devices")
        sample = sample_codes(space, 2000, rng)
        known = [1 + space.resolution.index(r) for r in covered_resolutions(table, space)]
        sample[:, space.column_index["resolution", 0]] = rng.choice(known, len(sample))
        weights = [1 / (len(models) * float(model.predict(sample).std())) for model in models]
        return _weighted_sum(models, weights)
    return AdditiveLatency(0.0, tuple(make_tables(_macs_of)))


def _measured_ms(table: LatencyTable, layer: LayerSpec) -> tuple[float]:
    return (layer_ms(table, layer),)


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
    """The base model times a scale plus an offset.

    Returns:
        The model, and (N,) which networks are no outliers.
    """
    scale, offset, kept = fit_line(base.predict(codes), ms)
    model = _weighted_sum([base], [scale])
    return AdditiveLatency(model.offset + offset, model.tables), kept


class StageFeatures(NamedTuple):
    """What each stage of an architecture has: blocks, MACs, numbers in memory and parameters.

    tables: of these four, by the choices that they depend on.
    groups: for each table the group whose features it adds to: 0 is the stem, i + 1 is stage i, and the last
        one is the head.
    scale: of each feature, from how much it varies in the space; 0 where it is the same everywhere.
    """

    tables: tuple[CostTable, ...]
    groups: list[int]
    scale: Floats

    def matrix(self, codes_NF: Codes) -> Floats:
        """(N, groups * 4) scaled features of encoded architectures."""
        return _feature_matrix(self.tables, self.groups, codes_NF) * self.scale


def _feature_matrix(tables: Sequence[CostTable], groups: Sequence[int], codes_NF: Codes) -> Floats:
    X = np.zeros((len(codes_NF), max(groups) + 1, tables[0].costs.shape[-1]))
    for part, group in zip(tables, groups, strict=True):
        X[:, group] += total([part], codes_NF).T
    return X.reshape(len(codes_NF), -1)


def stage_features(space: Space, classes: int, channels: int) -> StageFeatures:
    """What the stages of a space's architectures have.

    Args:
        space: of the architectures.
        classes: outputs of the classifier.
        channels: of the input images.
    """

    def features(layer: LayerSpec) -> tuple[float, float, float, float]:
        macs, params = cost_of_layer(layer)
        # Any units will do: the features are scaled below.
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
    # Features are scaled by how much they vary in the space, and not in the few networks that were measured.
    typical = _feature_matrix(found, groups, sample_codes(space, 2000, numpy_generator(0, "features")))
    spread = typical.std(axis=0)
    varies = spread > 1e-9 * (1 + np.abs(typical).max(axis=0))
    # A feature that is the same everywhere gets no weight; the inner `where` keeps 0 out of the division.
    scale = np.where(varies, 1 / np.where(varies, spread, 1), 0)
    return StageFeatures(found, groups, scale)


def _with_residual(
    model: AdditiveLatency, stages: StageFeatures, codes: Codes, ms: Floats
) -> AdditiveLatency:
    """`model` plus ridge regression on what it leaves, in the features of the stages."""
    X, left = stages.matrix(codes), ms - model.predict(codes)
    ridge = Ridge(_strength(X, left)).fit(X, left)
    # The regression is linear, so its weights and the scale of the features fold into tables of milliseconds.
    weights = (ridge.coef_ * stages.scale).reshape(max(stages.groups) + 1, -1)
    corrections = []
    for part, group in zip(stages.tables, stages.groups, strict=True):
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
