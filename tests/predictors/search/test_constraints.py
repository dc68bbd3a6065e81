"""Limits as people write them, and what it means to keep them."""

import numpy as np
import pytest

from ofa.cost import costs_of
from ofa.space.codes import Codes
from ofa.space.space import Space
from predictors.search.constraints import (
    Constraint,
    Objective,
    excess,
    fits,
    format_cost,
    format_limit,
    parse_budget,
    parse_bytes,
    parse_milliseconds,
    utilisation,
)


@pytest.mark.parametrize(
    ("written", "ms"),
    [("15ms", 15), ("0.015s", 15), ("15", 15), (15, 15), ("1.5e1 ms", 15), ("800us", 0.8), (".5s", 500)],
)
def test_latency_is_milliseconds(written: object, ms: float) -> None:
    assert parse_milliseconds(written) == pytest.approx(ms)


@pytest.mark.parametrize(
    ("written", "count"),
    [("20MB", 20e6), ("20M", 20e6), ("64MiB", 2**26), ("500kB", 5e5), (300, 300), ("1.5 GB", 1.5e9)],
)
def test_sizes_are_bytes(written: object, count: float) -> None:
    assert parse_bytes(written) == count


@pytest.mark.parametrize(
    "wrong", ["", "ms", "15 minutes", "-3ms", "0ms", True, None, "nan", "1e999ms", "1e300s", "1e-30s"]
)
def test_what_is_no_latency_is_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match="is not a latency; write it as 15ms"):
        parse_milliseconds(wrong)


@pytest.mark.parametrize("wrong", ["", "MB", "20ms", "-1MB", "0", True, "1e999", "1e305GB", "0.1"])
def test_what_is_no_size_is_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match="is not a number of bytes; write it as 20MB"):
        parse_bytes(wrong)


def test_limits_are_written_as_they_are_read() -> None:
    assert parse_milliseconds(format_cost("latency", 12.345, 15)) == 12.345
    assert parse_bytes(format_cost("size", 67_108_864, 15)) == 67_108_864


def test_a_limit_may_be_reached_and_not_passed(tiny: Space, everything: Codes) -> None:
    def macs(rows: Codes) -> np.ndarray:
        return costs_of(tiny, rows, 10, 1).macs

    def params(rows: Codes) -> np.ndarray:
        return costs_of(tiny, rows, 10, 1).params

    limits = [
        Constraint("macs", np.sort(macs(everything))[128], macs),
        Constraint("params", int(np.median(params(everything))), params),
    ]
    inside = (macs(everything) <= limits[0].limit) & (params(everything) <= limits[1].limit)
    assert 0 < inside.sum() < len(everything) and (macs(everything) == limits[0].limit).any()
    assert np.array_equal(fits(limits, everything), inside)
    assert np.array_equal(excess(limits, everything) == 0, inside)
    assert fits([], everything).all() and not utilisation([], everything).any()
    assert utilisation(limits, everything) == pytest.approx(
        macs(everything) / limits[0].limit + params(everything) / limits[1].limit
    )


@pytest.mark.parametrize("wrong", ["-5M", "0", "inf", "nan", "1e30", "0.2", "5Q"])
def test_what_is_no_budget_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"is not a count|is too large|is no budget"):
        parse_budget(wrong)


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("size", "1GiB"),
        ("size", "64MiB"),
        ("memory", "1.5GiB"),
        ("size", "20MB"),
        ("size", "500kB"),
        ("size", "123.456789MB"),
        ("latency", "15ms"),
        ("latency", "15.1ms"),
        ("latency", "0.8ms"),
        ("macs", "600M"),
        ("macs", "1.234567M"),
        ("params", "570k"),
    ],
)
def test_a_limit_is_written_as_people_type_it(name: str, written: str) -> None:
    read = {"latency": parse_milliseconds, "macs": parse_budget, "params": parse_budget}.get(
        name, parse_bytes
    )
    assert format_limit(name, read(written)) == written


@pytest.mark.parametrize(
    ("name", "limit", "written"),
    [
        ("macs", np.int64(600_000_000), "600M"),
        ("size", np.float64(2**30), "1GiB"),
        ("latency", np.float64(15.1), "15.1ms"),
    ],
)
def test_a_limit_may_be_a_number_of_numpy(name: str, limit: float, written: str) -> None:
    assert format_limit(name, limit) == written


def test_different_limits_never_share_a_name(tiny: Space) -> None:
    def nothing(rows: Codes) -> np.ndarray:
        return np.zeros(len(rows))

    values = [
        2**30,
        2**30 + 1,
        10**9,
        10**9 + 1,
        1_073_741_820,
        1_073_741_829,
        2**26,
        64 * 10**6,
        15.1,
        15.10001,
    ]
    names = {Objective.best([Constraint("memory", value, nothing)]).name for value in values}
    assert len(names) == len(values) and "memory1GiB" in names
    five = [("macs", 600e6), ("latency", 15.0), ("size", 2e7), ("memory", 2**30), ("params", 6e6)]
    limits = [Constraint(name, limit, nothing) for name, limit in five]
    assert Objective.best(limits).name == "600M-15ms-size20MB-memory1GiB-params6M"
