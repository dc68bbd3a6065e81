"""What a device allows: a cost, its limit and its unit; and how people write them."""

import re
from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator

from engine.config import format_count
from ofa.space.codes import Codes

Floats = NDArray[np.float64]
Scores = Callable[[Codes], Floats]
Costs = Callable[[Codes], Floats | NDArray[np.int64]]
UNITS = {"macs": "", "latency": "ms", "size": "B", "memory": "B", "params": ""}
FLAGS = {"macs": "--flops"} | {name: f"--{name}" for name in UNITS if name != "macs"}
_SECONDS = {"": 1.0, "ms": 1.0, "s": 1e3, "us": 1e-3, "µs": 1e-3}
_BYTES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


class Constraint(NamedTuple):
    """`name` of UNITS may be at most `limit`. cost: of encoded architectures (N, F), in the same unit,
    (N,)."""

    name: str
    limit: float
    cost: Costs

    @property
    def flag(self) -> str:
        """As it is written on the command line."""
        return FLAGS[self.name]

    def __str__(self) -> str:
        return f"{self.flag} {format_cost(self.name, self.limit, 15)}"


def excess(constraints: Sequence[Constraint], codes_NF: Codes) -> Floats:
    """(N,) by how much of their limits the constraints are passed, summed; 0 where all hold."""
    total = np.zeros(len(codes_NF))
    for c in constraints:
        total += np.maximum(c.cost(codes_NF) / c.limit - 1, 0)
    return total


def fits(constraints: Sequence[Constraint], codes_NF: Codes) -> NDArray[np.bool_]:
    """(N,) whether all constraints hold."""
    holds = np.ones(len(codes_NF), np.bool_)
    for c in constraints:
        holds &= c.cost(codes_NF) <= c.limit
    return holds


def use(constraints: Sequence[Constraint], codes_NF: Codes) -> Floats:
    """(N,) the shares of their limits that are used, summed: the cheaper one of two has less."""
    return np.sum(
        [np.asarray(c.cost(codes_NF), np.float64) / c.limit for c in constraints] + [np.zeros(len(codes_NF))],
        axis=0,
    )


def parse_milliseconds(value: object) -> float:
    """`15ms`, `0.015s`, `15000us` and `15` are 15 milliseconds."""
    number, unit = _parts(value)
    if number is None or unit not in _SECONDS or not 0 < number < np.inf:
        raise ValueError(f"{value!r} is not a latency; write it as 15ms, 0.015s or 15 (milliseconds)")
    return number * _SECONDS[unit]


def parse_bytes(value: object) -> int:
    """`20MB` is 20,000,000 bytes, `64MiB` is 64 x 1,048,576; `20M` is `20MB`."""
    number, unit = _parts(value)
    unit = unit.removesuffix("b")
    if number is None or unit not in _BYTES or not 0 < number < np.inf:
        raise ValueError(f"{value!r} is not a number of bytes; write it as 20MB, 64MiB, 500kB or 20000000")
    return round(number * _BYTES[unit])


def _parts(value: object) -> tuple[float | None, str]:
    match = re.fullmatch(r"\s*(\d+\.?\d*(?:e[+-]?\d+)?|\.\d+)\s*([a-zµ]*)\s*", str(value).lower())
    return (None, "") if isinstance(value, bool) or match is None else (float(match[1]), match[2])


Milliseconds = Annotated[float, BeforeValidator(parse_milliseconds)]
Bytes = Annotated[int, BeforeValidator(parse_bytes)]


def format_cost(name: str, value: float, digits: int = 3) -> str:
    """`15ms`, `20MB`, `600M`; with 15 digits as the flags read it back."""
    return f"{value:.{digits}g}ms" if UNITS[name] == "ms" else format_count(value, digits) + UNITS[name]


def round_up(name: str, value: float) -> float:
    """A limit that `value` keeps, in few digits."""
    return np.ceil(value * 100) / 100 if UNITS[name] == "ms" else value
