"""select under limits of latency: tables that cover some resolutions, and timings on this machine."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from made_up_latency import partial_device, written_table

from engine.blocks.latency_table import LatencyTable
from engine.command.cli import parse
from engine.errors import UserError
from engine.onnx_timing import machine_name, runtime_name
from engine.statistics import Floats
from ofa.layers import layer_specs
from ofa.space.arch import largest
from ofa.space.codes import Codes, encode
from ofa.space.space import Space
from predictors import select as select_module
from predictors.collect import Collect
from predictors.latency.here import is_of_this_machine, time_architecture
from predictors.latency.model import LatencyModel
from predictors.search.additive_optimum import additive_limits, additive_optimum
from predictors.search.best import find_best
from predictors.search.constraints import Constraint, Objective
from predictors.search.decompose import groups_of_layers
from predictors.search.dynamic_programming import fit_additive
from predictors.select import Select
from predictors.selection.timed import Stopwatch, keep_timed_limit


@pytest.fixture(scope="module")
def collected(trained_run: Path) -> Path:
    assert parse(Collect, ["--run", str(trained_run), "--count", "12"]).execute() == 0
    return trained_run


def select(run: Path, *flags: str) -> int:
    return parse(Select, ["--run", str(run), "--measure", "4", *flags]).execute()


@pytest.mark.slow
def test_a_table_of_some_resolutions_restricts_the_search(
    collected: Path, tiny: Space, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every select ended in `lacks resolution 8` until now."""
    table = written_table(partial_device(tiny), tmp_path)
    middle = float(LatencyModel(partial_device(tiny), tiny).predict(encode(tiny, largest(tiny))[None])[0])
    limit = f"{0.9 * middle:.4f}ms"
    assert select(collected, "--latency", limit, "--front", "macs,latency", "--latency-table", table) == 0
    said = capsys.readouterr().out
    assert "latency table made up covers 12 px: only these are searched\n" in said
    assert "made up has 0 whole networks, and a margin needs 10: predicted latencies are compared" in said
    (name,) = {path.stem for path in (collected / "selected").glob("*ms.json")}
    chosen = json.loads((collected / "selected" / f"{name}.json").read_text())
    front = json.loads((collected / "selected" / "front.json").read_text())
    for found in (chosen, *chosen["candidates"], *front):
        assert found["arch"]["resolution"] == 12
        assert 0 < found["latency_ms"] == found["latency_bound_ms"] <= 0.9 * middle
    with pytest.raises(
        UserError, match=r"keeps --latency 0.01ms; the nearest that one keeps is --latency 0\.0\d\d\d?ms\.$"
    ):
        select(collected, "--latency", "0.01ms", "--latency-table", table)
    # MACs of an architecture whose latency is not known are of no use.
    with pytest.raises(UserError, match=r"the nearest that one keeps is --flops \d"):
        select(collected, "--flops", "1k", "--latency", "1s", "--latency-table", table)


@pytest.mark.slow
def test_latency_that_is_not_limited_is_null_where_it_is_not_known(
    collected: Path, tiny: Space, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = written_table(partial_device(tiny), tmp_path)
    assert select(collected, "--flops", "60k", "--latency-table", table) == 0
    assert "only these are searched" not in capsys.readouterr().out
    text = (collected / "selected" / "60k.json").read_text()
    assert "Infinity" not in text
    chosen = json.loads(text)
    for found in (chosen, *chosen["candidates"]):
        assert (found["latency_ms"] is None) == (found["arch"]["resolution"] == 8)


@pytest.mark.slow
def test_limits_are_compared_with_a_bound_and_files_say_both(
    collected: Path, tiny: Space, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = partial_device(tiny, networks=20)
    model = LatencyModel(table, tiny)
    assert model.margin is not None and model.margin > 0
    limit = float(model.bound(encode(tiny, largest(tiny).model_copy(update={"resolution": 12}))[None])[0])
    name = f"{0.9 * limit:.3f}ms"
    assert select(collected, "--latency", name, "--latency-table", written_table(table, tmp_path)) == 0
    assert f"9 of 10 subnets take at most {model.margin:.1%} more than predicted" in capsys.readouterr().out
    (path,) = (p for p in (collected / "selected").glob("*ms.json") if p.stem == name)
    chosen = json.loads(path.read_text())
    assert chosen["latency_ms"] * (1 + model.margin) == pytest.approx(chosen["latency_bound_ms"])
    assert chosen["latency_bound_ms"] == chosen["constraints"][0]["value"] <= 0.9 * limit
    assert chosen["latency_p90_ms"] == pytest.approx(1.5 * chosen["latency_ms"])
    assert "latency_measured_ms" not in chosen


@pytest.mark.slow
def test_selected_subnets_are_timed_where_the_table_is_of_this_machine(
    collected: Path,
    tiny: Space,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[bytes] = []

    def time(space: Space, row: Codes, table: LatencyTable) -> float:
        asked.append(row.tobytes())
        return 11.0 if len(set(asked)) == 1 else 9.0

    monkeypatch.setattr(select_module, "time_architecture", time)
    here = partial_device(tiny, machine=machine_name(), runtime=runtime_name())
    table = written_table(here, tmp_path)
    flags = ["--latency", "10ms", "--latency-table", table]
    assert select(collected, *flags, "--no-verify-latency") == 0
    assert not asked
    without = json.loads((collected / "selected" / "10ms.json").read_text())
    assert select(collected, *flags) == 0
    said = capsys.readouterr().out
    assert (
        "10ms: a subnet took 11ms when it was timed here, so the next best one that keeps the limit" in said
    )
    chosen = json.loads((collected / "selected" / "10ms.json").read_text())
    assert chosen["arch"] != without["arch"] and len(set(asked)) == 2
    assert chosen["latency_measured_ms"] == 9.0
    assert "ms; timed here: 9ms." in said
    other = written_table(partial_device(tiny, machine="another"), tmp_path)
    assert select(collected, "--latency", "10ms", "--latency-table", other) == 0
    assert len(set(asked)) == 2


@pytest.mark.parametrize(
    ("times", "selected", "said"),
    [
        ([9.0, 9.0, 9.0, 9.0], 0, ""),
        ([12.0, 9.0, 9.0, 9.0], 1, "10ms: a subnet took 12ms"),
        ([12.0, 13.0, 9.0, 9.0], 2, "10ms: a subnet took 12ms"),
        (
            [12.0, 13.0, 14.0, 9.0],
            0,
            "over the limit, and so are the next best ones; select again with --latency 8.33ms",
        ),
        ([10.01, 13.0, 14.0, 9.0], 0, "select again with --latency 9.99ms"),
        ([10.0001, 13.0, 14.0, 9.0], 0, "select again with --latency 9.99ms"),
    ],
)
def test_the_next_best_that_keeps_the_limit_takes_over(times: list[float], selected: int, said: str) -> None:
    rows = np.arange(1, 5, dtype=np.uint8)[:, None]
    stopwatch = Stopwatch(lambda row: times[row[0] - 1])
    latency = Constraint("latency", 10.0, lambda codes: np.full(len(codes), 5.0))

    def first_that_fits(constraints: object) -> list[Codes]:
        (limit,) = constraints  # type: ignore[misc]
        return list(rows[limit.cost(rows) <= limit.limit][:1])

    objective, sentence = keep_timed_limit(Objective.best([latency]), first_that_fits, stopwatch, always)
    assert list(first_that_fits(objective.constraints)[0]) == [selected + 1]
    assert said in sentence and bool(said) == bool(sentence)


def test_where_no_other_subnet_is_left_the_choice_stays() -> None:
    row = np.ones(1, np.uint8)
    latency = Constraint("latency", 10.0, lambda codes: np.full(len(codes), 5.0))

    def only(constraints: object) -> list[Codes]:
        (limit,) = constraints  # type: ignore[misc]
        return [row] if limit.cost(row[None])[0] <= 10 else []

    stopwatch = Stopwatch(lambda row: 20.0)
    objective, sentence = keep_timed_limit(Objective.best([latency]), only, stopwatch, always)
    assert only(objective.constraints) and "select again with --latency 5ms" in sentence


def always(constraints: object) -> bool:
    return True


def test_a_limit_that_no_subnet_keeps_is_not_advised() -> None:
    """`select` refused the lower limit, named the one before as the nearest, and so on in a circle."""
    rows = np.arange(1, 3, dtype=np.uint8)[:, None]
    latency = Constraint("latency", 10.0, lambda codes: np.full(len(codes), 9.5))

    def best(constraints: Sequence[Constraint]) -> list[Codes]:
        (limit,) = constraints
        return list(rows[limit.cost(rows) <= limit.limit][:1])

    def at_least_9(constraints: Sequence[Constraint]) -> bool:
        return constraints[0].limit >= 9

    stopwatch = Stopwatch(lambda row: 13.0 - row[0])
    _, sentence = keep_timed_limit(Objective.best([latency]), best, stopwatch, at_least_9)
    assert sentence == (
        "10ms: the selected subnet took 12ms when it was timed here, which is over the limit: no subnet that "
        "was timed keeps it (the fastest took 11ms), and none is predicted to keep 8.33ms"
    )
    near = Stopwatch(lambda row: 10.5)
    assert (
        "select again with --latency 9.52ms"
        in keep_timed_limit(Objective.best([latency]), best, near, at_least_9)[1]
    )


def test_an_architecture_is_timed_as_the_kit_does(tiny: Space) -> None:
    here = partial_device(tiny, machine=machine_name(), runtime=runtime_name())
    assert is_of_this_machine(here)
    assert not is_of_this_machine(here.model_copy(update={"machine": ""}))
    assert not is_of_this_machine(here.model_copy(update={"runtime": "onnxruntime 0.1"}))
    row = encode(tiny, largest(tiny))
    assert 0 < time_architecture(tiny, row, here) < 1000
    assert len(layer_specs(tiny, largest(tiny), 10, 1)) > 2


def test_the_optimum_is_exact_where_a_table_covers_some_resolutions(tiny: Space, everything: Codes) -> None:
    """Infinite latencies could not be taken apart, so that the limit was unknown to the exact search."""
    latency = LatencyModel(partial_device(tiny, networks=20), tiny)
    weights = np.random.default_rng(0).normal(size=len(tiny.columns))

    def score(rows: Codes) -> Floats:
        return rows @ weights

    known = np.isfinite(latency.bound(everything))
    assert 0 < known.sum() < len(everything)
    for limit in np.quantile(latency.bound(everything[known]), [0.1, 0.5, 0.9]):
        constraint = Constraint("latency", float(limit), latency.bound)
        limits = additive_limits(tiny, [constraint])
        assert len(limits.costs) == 1
        allowed = everything[latency.bound(everything) <= limit]
        gains = fit_additive(tiny, score, groups_of_layers(tiny), np.random.default_rng(0))
        optimum = additive_optimum(tiny, gains, groups_of_layers(tiny), limits)
        assert optimum.is_proven and (latency.bound(optimum.rows) <= limit).all()
        found = find_best(tiny, score, [constraint], np.random.default_rng(0))
        assert score(found[:1])[0] == pytest.approx(score(allowed).max())
