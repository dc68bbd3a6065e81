"""What selection writes and prints: selected/<name>.json for each objective, a front as JSON and CSV."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from engine.command.table import plain_console
from engine.errors import UserError
from engine.run import FRONT, write_json
from engine.runs.writing import atomic
from ofa.space.codes import decode
from predictors.search.constraints import UNITS, ArchCostFn, Objective, format_cost
from predictors.selection.evaluations import Candidate, Evaluations
from predictors.selection.finalists import FINALIST_EPOCHS, Finalist, choose_finalist

# The names of costs in files.
KEYS = {
    "macs": "macs",
    "latency": "latency_ms",
    "latency_bound": "latency_bound_ms",
    "latency_p90": "latency_p90_ms",
    "latency_measured": "latency_measured_ms",
    "size": "size_bytes",
    "memory": "memory_bytes",
    "params": "params",
}
Record = dict[str, Any]


def write_selected(
    objectives: Sequence[Objective],
    evaluations: Evaluations,
    costs: Mapping[str, ArchCostFn],
    facts: Record,
    ties: float,
    folder: Path,
    finalists: Mapping[str, Sequence[Finalist]],
) -> None:
    """Write the selected subnet of each objective with its limits, and print all of them as a table.

    A file also holds the other subnets that were measured under the limits, ranked by measured accuracy.

    Args:
        objectives: each of them the best subnet under constraints.
        evaluations: everything measured.
        costs: every known cost.
        facts: about the selection, such as its seed; they are written into every file.
        ties: standard errors of accuracy within which the cheapest subnet is selected.
        folder: where to write.
        finalists: of an objective by its name, where a short tuning decides among them; empty: none does.

    Raises:
        UserError: no measured subnet keeps the constraints of an objective.
    """
    selected: dict[str, Record] = {}
    shown = ["macs", "params"]
    for objective in objectives:
        best = evaluations.choose(objective.constraints, ties)
        tuned = finalists.get(objective.name, [])
        if tuned:
            best = choose_finalist(tuned, objective.constraints, evaluations, ties).candidate
        if best is None:
            limits = " ".join(map(str, objective.constraints))
            raise UserError(
                f"No subnet that keeps {limits} was found; use --explore search, or raise a limit."
            )
        record = subnet_record(evaluations, best, costs)
        constraints = []
        for c in objective.constraints:
            value = c.cost(best.row[None])[0].item()
            constraints.append({"name": c.name, "limit": c.limit, "value": value, "unit": UNITS[c.name]})
            shown.append(c.name)
        # Collected subnets are in pairs.jsonl; here are only those that selection measured.
        others = []
        for candidate in evaluations.under(objective.constraints):
            if candidate.source == "select" and candidate is not best:
                others.append(subnet_record(evaluations, candidate, costs))
        written = record | {"constraints": constraints} | facts | {"candidates": others}
        if tuned:
            written["finalists"] = [_finalist_record(evaluations, finalist, costs) for finalist in tuned]
        write_json(folder / f"{objective.name}.json", written)
        selected[objective.name] = record
    if selected:
        _print_subnets("budget", selected, shown)


def write_front(
    objective: Objective,
    evaluations: Evaluations,
    costs: Mapping[str, ArchCostFn],
    folder: Path,
    digest: str,
) -> None:
    """Write the measured front of an objective as front.json and front.csv, and print it.

    Args:
        objective: its `front` names the costs, and its constraints hold for every point.
        evaluations: everything measured.
        costs: every known cost; all of them are written.
        folder: where to write.
        digest: of the weights, which every point names.
    """
    front = []
    for candidate in evaluations.front(objective.front, objective.constraints):
        front.append(subnet_record(evaluations, candidate, costs) | {"weights_sha256": digest})
    path = folder / FRONT
    write_json(path, front)
    rows = [_flat(record) for record in front]
    with (
        atomic(path.with_suffix(".csv")) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    # Points of a front have no names; they are numbered from the cheapest.
    numbered = {str(i): record for i, record in enumerate(front, start=1)}
    _print_subnets("front", numbered, ["macs", "params", *objective.front])


def subnet_record(evaluations: Evaluations, candidate: Candidate, costs: Mapping[str, ArchCostFn]) -> Record:
    """A measured subnet as JSON data.

    It holds the architecture, every known cost, the accuracy with its standard error, and what was predicted
    before the measurement; the predictions are null where no predictor proposed the subnet.
    """
    record: Record = {"arch": decode(evaluations.space, candidate.row).model_dump(mode="json")}
    for name, cost in costs.items():
        value = cost(candidate.row[None])[0].item()
        # Infinite is what is not known: a resolution that a latency table does not cover.
        record[KEYS[name]] = value if math.isfinite(value) else None
    prediction = candidate.prediction
    return record | {
        "val_accuracy": candidate.val_accuracy,
        "val_std": evaluations.noise(candidate.val_accuracy),
        "source": candidate.source,
        "predicted_accuracy": prediction and prediction.predicted_accuracy,
        "predicted_std": prediction and prediction.predicted_std,
        "interval": prediction and prediction.interval,
    }


def _finalist_record(evaluations: Evaluations, finalist: Finalist, costs: Mapping[str, ArchCostFn]) -> Record:
    """A finalist as JSON data: the measured subnet, and its accuracy after the short tuning."""
    record = subnet_record(evaluations, finalist.candidate, costs)
    return record | {"tuned_accuracy": finalist.tuned_accuracy, "tuned_epochs": FINALIST_EPOCHS}


def _flat(record: Record) -> Record:
    """One line of a CSV file: numbers, then the architecture, whose lists are joined by dashes."""
    # Predictions and intervals are in the JSON file only.
    row = {}
    for name in (*KEYS.values(), "val_accuracy", "source", "weights_sha256"):
        if name in record:
            row[name] = record[name]
    for name, value in record["arch"].items():
        row[name] = "-".join(map(str, value)) if isinstance(value, list) else value
    return row


def _print_subnets(title: str, subnets: Mapping[str, Record], costs: Sequence[str]) -> None:
    costs = list(dict.fromkeys(costs))  # each once, in order: several budgets may limit the same cost
    heads = ["MACs" if name == "macs" else name for name in costs]
    table = Table(title, *heads, "predicted", "measured", "res", "depth")
    for name, record in subnets.items():
        table.add_row(
            name,
            *[_cost_cell(cost, record) for cost in costs],
            _predicted_cell(record),
            f"{100 * record['val_accuracy']:.1f} ± {100 * record['val_std']:.1f}%",
            str(record["arch"]["resolution"]),
            "-".join(map(str, record["arch"]["depth"])),
        )
    plain_console().print(table)


def _cost_cell(name: str, record: Record) -> str:
    """A cost; latency with the bound that is compared with limits, and what was timed on this machine."""
    text = format_cost(name, record[KEYS[name]])
    if name != "latency":
        return text
    bound, timed = record.get("latency_bound_ms"), record.get("latency_measured_ms")
    more = [f"at most {bound:.3g}"] if bound else []
    if timed:
        more.append(f"timed {timed:.3g}")
    return f"{text} ({', '.join(more)})" if more else text


def _predicted_cell(record: Record) -> str:
    predicted, interval = record["predicted_accuracy"], record["interval"]
    if interval:
        return f"{100 * predicted:.1f}% ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"
    if predicted is None:
        return "-"
    return f"{100 * predicted:.1f} ± {100 * record['predicted_std']:.1f}%"
