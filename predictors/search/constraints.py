"""What a device allows and what is wanted: costs with limits, as people write them, and objectives."""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Annotated, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator

from engine.config import MOST_COUNT, format_count, parse_count
from engine.errors import shortened
from engine.statistics import Floats
from ofa.space.codes import Codes

ScoreFn = Callable[[Codes], Floats]  # encoded architectures (N, F) -> (N,), higher is better
ArchCostFn = Callable[[Codes], Floats | NDArray[np.int64]]  # encoded architectures (N, F) -> costs (N,)
# Every cost that can be limited, with its unit.
UNITS = {"macs": "", "latency": "ms", "size": "B", "memory": "B", "params": ""}
# The papers say FLOPs and count multiply-accumulates.
FLAGS = {"macs": "--flops"} | {name: f"--{name}" for name in UNITS if name != "macs"}
NO_LIMIT = sys.float_info.max  # every cost keeps it that is finite, and so known
EXACT_DIGITS = 15  # a float64 keeps so many: a limit is printed as it was typed
# Significant digits that a limit keeps: 0.0151s is 15.1ms, and not 15.100000000000001ms.
MILLISECOND_DIGITS = 12
LEAST_MS, MOST_MS = 1e-6, 1e9  # a nanosecond, and eleven days
_SECONDS = {"": 1.0, "ms": 1.0, "s": 1e3, "us": 1e-3, "µs": 1e-3}
# Without the B, which may be left out: 20M is 20MB.
_BYTES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_DECIMAL = (("G", 10**9), ("M", 10**6), ("k", 10**3), ("", 1))
_BINARY = (("Gi", 2**30), ("Mi", 2**20), ("Ki", 2**10))


class Constraint(NamedTuple):
    """A limit of a cost.

        Constraint("macs", 600e6, lambda codes: costs_of(space, codes, 1000, 3).macs)

    name: one of `UNITS`.
    limit: the most that is allowed, in the unit of `UNITS`.
    cost: of encoded architectures (N, F), in the same unit: (N,).
    """

    name: str
    limit: float
    cost: ArchCostFn

    @property
    def flag(self) -> str:
        """The flag of predictors.select that sets this limit."""
        return FLAGS[self.name]

    def __str__(self) -> str:
        return f"{self.flag} {format_limit(self.name, self.limit)}"


class Objective(NamedTuple):
    """One thing to find: the best subnet under constraints, or a whole front of accuracy against costs.

    name: of the file in selected/, and of the study.
    constraints: what every subnet must keep.
    front: costs by name for a front; empty for the best subnet.
    """

    name: str
    constraints: tuple[Constraint, ...]
    front: Mapping[str, ArchCostFn]

    @classmethod
    def best(cls, constraints: Sequence[Constraint]) -> "Objective":
        """The best subnet under constraints, named by its limits: `600M`, `600M-15ms`, `600M-size20MB`.

        Different limits never have the same name.
        """
        words = []
        for c in constraints:
            # `M` and `ms` say by themselves what they limit; bytes and parameters do not.
            prefix = "" if c.name in ("macs", "latency") else c.name
            words.append(prefix + format_limit(c.name, c.limit))
        return cls("-".join(words), tuple(constraints), {})


def excess(constraints: Sequence[Constraint], codes_NF: Codes) -> Floats:
    """(N,) by how much the costs are over their limits, summed as shares of the limits; 0 where all hold."""
    # Shares, because milliseconds and bytes cannot be added.
    total = np.zeros(len(codes_NF))
    for c in constraints:
        total += np.maximum(c.cost(codes_NF) / c.limit - 1, 0)
    return total


def fits(constraints: Sequence[Constraint], codes_NF: Codes) -> NDArray[np.bool_]:
    """(N,) whether all constraints hold; a limit may be reached."""
    holds = np.ones(len(codes_NF), np.bool_)
    for c in constraints:
        holds &= c.cost(codes_NF) <= c.limit
    return holds


def utilisation(constraints: Sequence[Constraint], codes_NF: Codes) -> Floats:
    """(N,) the costs as shares of their limits, summed: of two architectures the cheaper one has less."""
    total = np.zeros(len(codes_NF))
    for c in constraints:
        total += np.asarray(c.cost(codes_NF), np.float64) / c.limit
    return total


def parse_milliseconds(value: object) -> float:
    """`15ms`, `0.015s`, `15000us` and `15` are 15 milliseconds.

    Raises:
        ValueError: it is not a number in one of these units, or no time between a nanosecond and 11 days.
    """
    number, unit = _number_and_unit(value)
    ms = number * _SECONDS.get(unit, np.nan)
    if not LEAST_MS <= ms <= MOST_MS:
        raise ValueError(f"{_quoted(value)} is not a latency; write it as 15ms, 0.015s or 15 (milliseconds)")
    return float(f"{ms:.{MILLISECOND_DIGITS}g}")


def parse_bytes(value: object) -> int:
    """`20MB` is 20,000,000 bytes, `64MiB` is 64 x 1,048,576; `20M` is `20MB`.

    Raises:
        ValueError: it is not a number in one of these units, or not between 1 and 1e18 bytes.
    """
    number, unit = _number_and_unit(value)
    count = number * _BYTES.get(unit.removesuffix("b"), np.nan)
    if not 1 <= count < MOST_COUNT:
        raise ValueError(
            f"{_quoted(value)} is not a number of bytes; write it as 20MB, 64MiB, 500kB or 20000000"
        )
    return round(count)


def parse_budget(value: object) -> int:
    """The count that `engine.config.parse_count` reads, of MACs or parameters, and at least 1.

    Raises:
        ValueError: it is not a count, or 0.
    """
    count = parse_count(value)
    if count < 1:
        raise ValueError(
            f"{_quoted(value)} is no budget: nothing costs less than 1; write it as 600M or 0.6G"
        )
    return count


def _quoted(value: object) -> str:
    return shortened(repr(value))


def _number_and_unit(value: object) -> tuple[float, str]:
    """The number, which is nan if there is none, and its unit."""
    # 20, 0.5, .5 or 2e7, and then a unit of letters, in any case.
    match = re.fullmatch(r"\s*(\d+\.?\d*(?:e[+-]?\d+)?|\.\d+)\s*([a-zµ]*)\s*", str(value).lower())
    # True is an integer in Python, and no amount of anything.
    if isinstance(value, bool) or match is None:
        return np.nan, ""
    return float(match[1]), match[2]


Milliseconds = Annotated[float, BeforeValidator(parse_milliseconds)]
Bytes = Annotated[int, BeforeValidator(parse_bytes)]
Budget = Annotated[int, BeforeValidator(parse_budget)]


def format_cost(name: str, value: float, digits: int = 3) -> str:
    """Write a cost as its flag reads it: `15ms`, `20MB`, `600M`.

    Args:
        name: one of `UNITS`.
        value: in the unit of `UNITS`.
        digits: significant digits. With `EXACT_DIGITS` the flag reads a limit back as it was typed.
    """
    if UNITS[name] == "ms":
        return f"{value:.{digits}g}ms"
    return format_count(value, digits) + UNITS[name]


def format_limit(name: str, limit: float) -> str:
    """Write a limit exactly, and as short as its flag reads it: `15ms`, `20MB`, `1GiB`, `600M`.

    Args:
        name: one of `UNITS`.
        limit: in the unit of `UNITS`.
    """
    unit = UNITS[name]
    if unit == "ms":
        return repr(float(limit)).removesuffix(".0") + unit
    # Decimal units first: of equally short ones they are what people type.
    written = [_in_unit(limit, *_decimal_unit(limit)) + unit]
    if unit == "B":
        for suffix, size in _BINARY:
            if limit >= size:
                written.append(_in_unit(limit, suffix, size) + unit)
    return min(written, key=len)


def _decimal_unit(value: float) -> tuple[str, int]:
    for suffix, size in _DECIMAL:
        if value >= size:
            return suffix, size
    return _DECIMAL[-1]


def _in_unit(value: float, suffix: str, size: int) -> str:
    """All digits of a value in a unit, without an exponent."""
    # By way of str, since Decimal takes no integer of NumPy.
    digits = f"{Decimal(str(value)) / size:f}"
    if "." in digits:
        digits = digits.rstrip("0").rstrip(".")
    return digits + suffix


def round_up(name: str, value: float) -> float:
    """The lowest limit that `value` keeps and that is short to write."""
    # Milliseconds have many digits, of which the first three say enough; all other costs are whole numbers.
    if UNITS[name] == "ms":
        step = 10.0 ** (np.floor(np.log10(value)) - 2)
        return float(np.ceil(value / step) * step)
    return value
