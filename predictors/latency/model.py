"""Latency of architectures on one device, predicted from a table of what was measured there.

The table is data (JSON): milliseconds of blocks and of whole networks. The model is refitted from it whenever
it is read:

    base         the sum of the blocks; or, without blocks, the mean of what other devices' tables predict; or
    MACs affine       base times a scale plus an offset, from 10 or more whole networks: reordering between
    blocks, fusion, overheads residual     ridge on what each stage has (blocks, MACs, map sizes, parameters),
    from 30 or more, its strength by leave-one-out

All are sums over pieces, so every model becomes one table for each block, and a million architectures are
look-ups.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.stats import kendalltau
from sklearn.linear_model import Ridge, RidgeCV

from engine.config import Config, validate
from engine.errors import UserError
from engine.run import read_json
from engine.seed import numpy_generator
from ofa.cost import cost_of_layer, memory_of_layer
from ofa.layers import CostTable, LayerSpec, cost_tables, total
from ofa.space.codes import Codes, sample_codes
from ofa.space.space import Space
from predictors.latency.kit import structure

VERSION = 1
AFFINE_AT_LEAST, RESIDUAL_AT_LEAST = 10, 30
STRENGTHS = np.logspace(-1, 6, 15)
Floats = NDArray[np.float64]
Level = Literal["base", "affine", "residual"]


class Noise(Config):
    """How far two halves of the rounds agree: reliability is the Spearman-Brown corrected correlation of the
    logarithms.

    relative is the median difference between the two halves, as a share of the latency.
    """

    rounds: int
    reliability: float | None
    relative: float | None


class Network(Config):
    """A measured architecture: its row of codes in hexadecimal, and milliseconds."""

    codes: str
    ms: float = Field(gt=0)


class LatencyTable(Config):
    """What was measured on a device. Milliseconds, batch 1 unless said otherwise.

    blocks: by structure (see `predictors.latency.kit.structure`) and side of the input map. others: tables of
        other devices, from which
    this one's networks are predicted where it has no blocks.
    """

    version: Literal[1] = 1
    device: str
    runtime: str
    machine: str = ""
    threads: int
    precision: str = "float32"
    batch: int = 1
    clock: Literal["cpu", "wall", "unknown"]
    space: str
    fingerprint: str
    classes: int
    channels: int
    resolutions: tuple[int, ...]
    noise: Noise
    blocks: dict[str, dict[int, float]] = Field({})
    networks: tuple[Network, ...] = ()
    others: tuple["LatencyTable", ...] = ()


class Additive(NamedTuple):
    """Milliseconds of an architecture: an offset plus one entry of each table."""

    offset: float
    tables: tuple[CostTable, ...]

    def predict(self, codes_NF: Codes) -> Floats:
        """(N,) milliseconds."""
        ms: Floats = total(self.tables, codes_NF)[0] + self.offset
        return ms


class LatencyModel:
    """Predicts latency on the device of `table` for architectures of `space`.

    Raises:
        UserError: the table does not know enough for it.
    """

    def __init__(self, table: LatencyTable, space: Space, level: Level = "residual") -> None:
        self.table, self.space = table, space
        self._range = (min(table.resolutions), max(table.resolutions))
        self._model = fit(table, space, level)

    def predict(self, codes_NF: Codes) -> Floats:
        """(N,) milliseconds of encoded architectures. Resolutions between measured ones are interpolated.

        Raises:
            UserError: a resolution is outside of those measured.
        """
        asked = np.array(self.space.resolution)[np.unique(codes_NF[:, 0]) - 1]
        for resolution in asked:
            if not self._range[0] <= resolution <= self._range[1]:
                has = ", ".join(map(str, self.table.resolutions))
                raise UserError(
                    f"The latency table of '{self.table.device}' lacks resolution {resolution}; it has "
                    f"{has}: "
                    f"measure with --resolutions {resolution} too, or search those only."
                )
        return self._model.predict(codes_NF)


def load_latency(path: Path, space: Space, classes: int, channels: int) -> LatencyModel:
    """The model of the table at `path` for a space, a number of classes and of input channels.

    Raises:
        UserError: the file is missing or damaged, of another version, of another space or other classes, or
            too small.
    """
    table = read_table(path)
    if table.fingerprint != fingerprint(space):
        raise UserError(
            f"{path} was measured for space '{table.space}', whose choices are not those of '{space.name}'; "
            "measure again with python -m predictors.measure --space or --run."
        )
    if (table.classes, table.channels) != (classes, channels):
        raise UserError(
            f"{path} is for {table.classes} classes and {table.channels} input channels, not for {classes} "
            f"and {channels}; "
            "measure again with python -m predictors.measure --run."
        )
    return LatencyModel(table, space)


def read_table(path: Path) -> LatencyTable:
    """The table in a JSON file.

    Raises:
        UserError: it is missing, damaged or of another version.
    """
    values = read_json(path)
    version = values.get("version") if isinstance(values, dict) else None
    if version != VERSION:
        raise UserError(
            f"{path} is not a latency table of version {VERSION}: its version is {version}; "
            "write it again with python -m predictors.measure of this installation."
        )
    return validate(LatencyTable, values, str(path))


def fingerprint(space: Space) -> str:
    """Names the choices of a space that decide latency: two spaces of equal fingerprint share tables."""
    choices = space.model_dump(mode="json", exclude={"name", "source", "bn_eps", "kernels"})
    return hashlib.blake2b(json.dumps(choices, sort_keys=True).encode(), digest_size=8).hexdigest()


def networks_of(table: LatencyTable) -> tuple[Codes, Floats]:
    """Rows of codes and milliseconds of the measured networks."""
    codes = [np.frombuffer(bytes.fromhex(network.codes), np.uint8) for network in table.networks]
    return np.array(codes, np.uint8), np.array([network.ms for network in table.networks])


def fit(table: LatencyTable, space: Space, level: Level = "residual") -> Additive:
    """The model of a table; `level` is how much of it is used.

    Raises:
        UserError: there are neither blocks nor networks enough.
    """
    base = _base(table, space)
    codes, y = networks_of(table)
    if len(y) < AFFINE_AT_LEAST and not table.blocks:
        raise UserError(
            f"The latency table of '{table.device}' has no blocks and only {len(y)} networks; "
            f"measure at least {AFFINE_AT_LEAST} with --whole."
        )
    if level == "base" or len(y) < AFFINE_AT_LEAST:
        return base
    model, kept = _affine(base, codes, y)
    if level == "residual" and len(y) >= RESIDUAL_AT_LEAST:
        return _with_residual(model, table, space, codes[kept], y[kept])
    return model


def _base(table: LatencyTable, space: Space) -> Additive:
    make = partial(cost_tables, space, table.classes, table.channels, dtype=np.float64)
    if table.blocks:
        return Additive(0.0, tuple(make(partial(_look_up, table))))
    if table.others:
        sample = sample_codes(space, 2000, numpy_generator(0, "devices"))
        found = [fit(other, space) for other in table.others]
        scale = [1 / (len(found) * float(model.predict(sample).std())) for model in found]
        return _sum(found, scale)
    return Additive(0.0, tuple(make(lambda piece: (cost_of_layer(piece)[0] / 1e8,))))


def _look_up(table: LatencyTable, piece: LayerSpec) -> tuple[float]:
    """Milliseconds of a piece: between measured sizes, linear in the area of its map; NaN outside of them."""
    name = structure(piece)
    if name not in table.blocks:
        raise UserError(
            f"The latency table of '{table.device}' lacks block {name}; measure again with the same space."
        )
    measured = sorted(table.blocks[name].items())
    sizes, ms = [size**2 for size, _ in measured], [value for _, value in measured]
    return (float(np.interp(piece.size**2, sizes, ms, left=np.nan, right=np.nan)),)


def _sum(models: Sequence[Additive], weights: Sequence[float]) -> Additive:
    """A weighted sum of models of one space."""
    offset = sum(w * m.offset for w, m in zip(weights, models, strict=True))
    joined = [
        CostTable(parts[0].columns, np.asarray(sum(w * t.costs for w, t in zip(weights, parts, strict=True))))
        for parts in zip(*(m.tables for m in models), strict=True)
    ]
    return Additive(offset, tuple(joined))


def _affine(base: Additive, codes: Codes, y: Floats) -> tuple[Additive, NDArray[np.bool_]]:
    """Scale and offset by least squares of the relative error, without outliers; and which networks are none.

    A scale that comes out negative, from few and noisy networks, is replaced by the ratio of the means.
    """
    x, kept = base.predict(codes), np.ones(len(y), np.bool_)
    scale = offset = 0.0
    for _ in range(3):
        rows = np.stack([x[kept], np.ones(kept.sum())], axis=1) / y[kept, None]
        scale, offset = map(float, np.linalg.lstsq(rows, np.ones(kept.sum()), rcond=None)[0])
        if scale <= 0:
            scale, offset = float(y[kept].mean() / x[kept].mean()), 0.0
        error = (scale * x + offset - y) / y
        error = error - np.median(error)
        kept = np.abs(error) <= 5 * 1.4826 * np.median(np.abs(error)) + 1e-9
    model = _sum([base], [scale])
    return Additive(model.offset + offset, model.tables), kept


def stage_features(space: Space, classes: int, channels: int) -> tuple[tuple[CostTable, ...], list[int]]:
    """Tables of (blocks, MACs, numbers in memory, parameters), and for each table the stage whose features it
    adds to."""

    def features(piece: LayerSpec) -> tuple[float, float, float, float]:
        macs, params = cost_of_layer(piece)
        return 1.0, macs / 1e8, memory_of_layer(piece) / 1e6, params / 1e6

    found = tuple(cost_tables(space, classes, channels, features, dtype=np.float64))
    stage_of = {space.column_index["depth", i]: i + 1 for i in range(len(space.stages))}
    last = len(space.stages) + 1
    groups = [
        next((stage_of[c] for c in t.columns if c in stage_of), last if i else 0) for i, t in enumerate(found)
    ]
    return found, groups


def _with_residual(model: Additive, table: LatencyTable, space: Space, codes: Codes, y: Floats) -> Additive:
    """Ridge on what `model` leaves, in the features of the stages."""
    found, groups = stage_features(space, table.classes, table.channels)
    width, stages = found[0].costs.shape[-1], max(groups) + 1

    def matrix(rows: Codes) -> Floats:
        X = np.zeros((len(rows), stages, width))
        for part, group in zip(found, groups, strict=True):
            X[:, group] += total([part], rows).T
        return X.reshape(len(rows), -1)

    typical = matrix(sample_codes(space, 2000, numpy_generator(0, "features")))
    spread = typical.std(axis=0)
    varies = spread > 1e-9 * (1 + np.abs(typical).max(axis=0))
    scale = np.where(varies, 1 / np.where(varies, spread, 1), 0)
    left = y - model.predict(codes)
    X = matrix(codes) * scale
    tried = RidgeCV(STRENGTHS, store_cv_results=True).fit(X, left).cv_results_
    worse = tried - tried[:, [tried.mean(axis=0).argmin()]]
    within = worse.mean(axis=0) <= worse.std(axis=0) / np.sqrt(
        len(left)
    )  # one standard error of leave-one-out: then the stronger
    ridge = Ridge(STRENGTHS[np.flatnonzero(within)[-1]]).fit(X, left)
    weights = (ridge.coef_ * scale).reshape(stages, width)
    priced = [
        CostTable(t.columns, (t.costs @ weights[group])[..., None])
        for t, group in zip(found, groups, strict=True)
    ]
    return _sum([model, Additive(float(ridge.intercept_), tuple(priced))], [1, 1])


class Quality(NamedTuple):
    """On networks that a model did not see: mean absolute relative error, and Kendall's tau."""

    error: float
    tau: float


def cross_validated(table: LatencyTable, space: Space, level: Level, folds: int = 5) -> Quality | None:
    """Quality of a model of this table on its own networks, each predicted from the other folds; none with
    fewer than 10 left to fit."""
    y = networks_of(table)[1]
    places = numpy_generator(0, "latency folds").permutation(len(y)) % folds
    if len(y) * (folds - 1) // folds < AFFINE_AT_LEAST:
        return None
    predicted = np.empty_like(y)
    for fold in range(folds):
        held = places == fold
        others = tuple(network for network, out in zip(table.networks, held, strict=True) if not out)
        codes = networks_of(table)[0][held]
        predicted[held] = fit(table.model_copy(update={"networks": others}), space, level).predict(codes)
    return Quality(float(np.mean(np.abs(predicted - y) / y)), float(kendalltau(predicted, y).statistic))
