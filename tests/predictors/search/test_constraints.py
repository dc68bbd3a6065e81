"""Limits as people write them, and what it means to keep them."""

import numpy as np
import pytest

from ofa.cost import costs_of
from ofa.space.codes import Codes
from ofa.space.space import Space
from predictors.search.constraints import (
    Constraint,
    excess,
    fits,
    format_cost,
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


@pytest.mark.parametrize("wrong", ["", "ms", "15 minutes", "-3ms", "0ms", True, None, "nan", "1e999ms"])
def test_what_is_no_latency_is_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match="is not a latency; write it as 15ms"):
        parse_milliseconds(wrong)


@pytest.mark.parametrize("wrong", ["", "MB", "20ms", "-1MB", "0", True, "1e999"])
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
