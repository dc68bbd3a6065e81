"""What selection writes: selected/<name>.json for each goal, front.json and front.csv, and the tables it
prints."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from engine.errors import UserError
from engine.run import atomic, write_json
from ofa.space.codes import decode
from predictors.accuracy.pairs import FRONT
from predictors.search.constraints import UNITS, Constraint, Costs, format_cost
from predictors.search.evaluations import Candidate, Measured

KEYS = {
    "macs": "macs",
    "latency": "latency_ms",
    "size": "size_bytes",
    "memory": "memory_bytes",
    "params": "params",
}


class Goal(NamedTuple):
    """The best subnet under constraints or, where `front` names costs, the whole front of accuracy against
    them."""

    name: str
    constraints: tuple[Constraint, ...]
    front: Mapping[str, Costs]

    @classmethod
    def best(cls, constraints: Sequence[Constraint]) -> "Goal":
        """Named by its limits: `600M`, `600M-15ms`, `600M-size20MB`."""
        words = [
            ("" if c.name in ("macs", "latency") else c.name) + format_cost(c.name, c.limit, 15)
            for c in constraints
        ]
        return cls("-".join(words), tuple(constraints), {})


def write_goals(
    goals: Sequence[Goal],
    measured: Measured,
    costs: Mapping[str, Costs],
    facts: dict[str, Any],
    ties: float,
    folder: Path,
) -> None:
    """The choice for each goal with its limits and the other measured candidates, ranked by measurement.
    ties: standard errors."""
    chosen = {}
    for goal in goals:
        best = measured.choose(goal.constraints, ties)
        if best is None:
            raise UserError(
                f"No subnet that keeps {' '.join(map(str, goal.constraints))} was found; use --explore "
                "search, or raise a limit."
            )
        others = [
            describe(measured, c, costs)
            for c in measured.under(goal.constraints)
            if c.source == "select" and c is not best
        ]
        chosen[goal.name] = describe(measured, best, costs)
        limits = [
            {
                "name": c.name,
                "limit": c.limit,
                "value": chosen[goal.name][KEYS[c.name]],
                "unit": UNITS[c.name],
            }
            for c in goal.constraints
        ]
        write_json(
            folder / f"{goal.name}.json",
            chosen[goal.name] | {"constraints": limits} | facts | {"candidates": others},
        )
    shown = dict.fromkeys(["macs", "params", *(c.name for goal in goals for c in goal.constraints)])
    if chosen:
        _show("budget", chosen, list(shown))


def write_front(goal: Goal, measured: Measured, costs: Mapping[str, Costs], folder: Path) -> None:
    """The measured front, cheapest first."""
    front = [
        describe(measured, candidate, costs) for candidate in measured.front(goal.front, goal.constraints)
    ]
    write_json(folder / FRONT, front)
    with (
        atomic((folder / FRONT).with_suffix(".csv")) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, _flat(front[0]))
        writer.writeheader()
        writer.writerows(_flat(point) for point in front)
    _show(
        "front",
        {str(i): point for i, point in enumerate(front, start=1)},
        list(dict.fromkeys(["macs", "params", *goal.front])),
    )


def describe(measured: Measured, candidate: Candidate, costs: Mapping[str, Costs]) -> dict[str, Any]:
    """A measured subnet as data: architecture, every known cost, accuracy with its standard error, and what
    was predicted."""
    prediction = candidate.prediction
    return {
        "arch": decode(measured.space, candidate.row).model_dump(mode="json"),
        **{KEYS[name]: cost(candidate.row[None])[0].item() for name, cost in costs.items()},
        "val_accuracy": candidate.val_accuracy,
        "val_std": measured.noise(candidate.val_accuracy),
        "source": candidate.source,
        "predicted_accuracy": prediction and prediction.predicted_accuracy,
        "predicted_std": prediction and prediction.predicted_std,
        "interval": prediction and prediction.interval,
    }


def _flat(facts: dict[str, Any]) -> dict[str, Any]:
    """One line of the table: numbers, then the architecture, lists joined by dashes."""
    arch = {
        name: "-".join(map(str, value)) if isinstance(value, list) else value
        for name, value in facts["arch"].items()
    }
    return {name: facts[name] for name in (*KEYS.values(), "val_accuracy", "source") if name in facts} | arch


def _show(what: str, subnets: dict[str, dict[str, Any]], costs: list[str]) -> None:
    table = Table(
        what, *("MACs" if name == "macs" else name for name in costs), "predicted", "measured", "res", "depth"
    )
    for name, facts in subnets.items():
        expected, interval = facts["predicted_accuracy"], facts["interval"]
        predicted = "-" if expected is None else f"{100 * expected:.1f} ± {100 * facts['predicted_std']:.1f}%"
        if interval:
            predicted = f"{100 * expected:.1f}% ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"
        reached = f"{100 * facts['val_accuracy']:.1f} ± {100 * facts['val_std']:.1f}%"
        shape = (str(facts["arch"]["resolution"]), "-".join(map(str, facts["arch"]["depth"])))
        table.add_row(
            name, *(format_cost(cost, facts[KEYS[cost]]) for cost in costs), predicted, reached, *shape
        )
    Console().print(table)
