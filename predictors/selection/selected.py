"""What selection writes and prints: selected/<name>.json for each objective, a front as JSON and CSV."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from engine.command.table import show
from engine.config import counted
from engine.errors import UserError
from engine.run import FRONT, write_json
from engine.runs.writing import atomic
from ofa.space.codes import decode
from predictors.accuracy.validation import CandidateQuality, chance_sentence, format_tau
from predictors.search.constraints import NO_LIMIT, UNITS, ArchCostFn, Constraint, Objective, format_cost
from predictors.selection.budgets import budget_sentences, format_expected, half_budget, half_sentence
from predictors.selection.evaluations import FEWEST_TO_LEARN_FROM, Evaluations
from predictors.selection.exploration import Explored
from predictors.selection.finalists import FINALIST_EPOCHS, Finalist, choose_finalist
from predictors.selection.posterior import Estimate, choose, front, under

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
    explored: Sequence[Explored],
    costs: Mapping[str, ArchCostFn],
    facts: Record,
    ties: float,
    folder: Path,
    finalists: Mapping[str, Sequence[Finalist]],
) -> None:
    """Write the selected subnet of each budget with its limits, and print all of them as a table.

    A file also holds the other subnets that were measured under the limits, the one to expect most of first.

    Args:
        explored: what was found for each of the budgets.
        costs: every known cost.
        facts: about the selection, such as its seed; they are written into every file.
        ties: standard errors of the accuracy within which the cheapest subnet is selected; 0: the best one.
        folder: where to write.
        finalists: of an objective by its name, where a short tuning decides among them; empty: none does.

    Raises:
        UserError: no measured subnet keeps the constraints of an objective.
    """
    records: dict[str, Record] = {}
    selected: list[tuple[Objective, Estimate]] = []
    shown = ["macs", "params"]
    sentences = []
    for found in explored:
        objective = found.objective
        tuned = finalists.get(objective.name, [])
        best = _best(found, tuned, ties)
        half = half_budget(found.estimates, objective.constraints)
        record = subnet_record(found.evaluations, best, costs)
        written = record | {"constraints": _reached(objective, best)} | facts
        if found.own:
            written["predicted_candidates"] = found.own._asdict()
        written["half"] = half and subnet_record(found.evaluations, half, costs)
        # Collected subnets are in pairs.jsonl; here are only those that selection measured.
        others = []
        for other in under(found.estimates, objective.constraints):
            if other.candidate.source == "select" and other is not best:
                others.append(subnet_record(found.evaluations, other, costs))
        written["candidates"] = others
        if tuned:
            written["finalists"] = [_finalist_record(found, finalist, costs) for finalist in tuned]
        write_json(folder / f"{objective.name}.json", written)
        records[objective.name] = record
        selected.append((objective, best))
        shown += [c.name for c in objective.constraints]
        if any(c.name == "latency" for c in objective.constraints):
            sentences.append(_latency_sentence(objective.name, record))
        sentences.append(half_sentence(objective, best, half, found.evaluations.images))
    if not selected:
        return
    _print_subnets("budget", records, shown)
    if any(len(found.estimates) < FEWEST_TO_LEARN_FROM for found in explored):
        print("Too few subnets are measured to learn from: the expected accuracies are the measured ones.")
    sentences += budget_sentences(selected, costs["macs"], explored[0].evaluations.images)
    for sentence in sentences:
        print(sentence)


def _best(found: Explored, tuned: Sequence[Finalist], ties: float) -> Estimate:
    """The subnet to select for an objective."""
    constraints = found.objective.constraints
    if tuned:
        return choose_finalist(tuned, constraints, found.evaluations.images, ties).estimate
    best = choose(found.estimates, constraints, ties)
    if best is None:
        raise _nothing_found(constraints)
    return best


def _nothing_found(constraints: Sequence[Constraint]) -> UserError:
    limits = " ".join(str(c) for c in constraints if c.limit < NO_LIMIT)
    return UserError(f"No subnet that keeps {limits} was found; use --explore search, or raise a limit.")


def _reached(objective: Objective, best: Estimate) -> list[Record]:
    """Each limit as JSON data, with the value that the selected subnet reaches."""
    limits = []
    for c in objective.constraints:
        value = c.cost(best.candidate.row[None])[0].item()
        limits.append({"name": c.name, "limit": c.limit, "value": value, "unit": UNITS[c.name]})
    return limits


def write_front(explored: Explored, costs: Mapping[str, ArchCostFn], folder: Path, digest: str) -> None:
    """Write the front of an objective as front.json and front.csv, and print it.

    No point is beaten by another measured subnet in expected accuracy and all costs of the front.

    Args:
        explored: its objective's `front` names the costs, and the constraints hold for every point.
        costs: every known cost; all of them are written.
        folder: where to write.
        digest: of the weights, which every point names.

    Raises:
        UserError: no measured subnet keeps the constraints.
    """
    objective = explored.objective
    points = []
    for found in front(explored.estimates, objective.front, objective.constraints):
        points.append(subnet_record(explored.evaluations, found, costs) | {"weights_sha256": digest})
    if not points:
        raise _nothing_found(objective.constraints)
    path = folder / FRONT
    write_json(path, points)
    rows = [_flat(record) for record in points]
    with (
        atomic(path.with_suffix(".csv")) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    # Points of a front have no names; they are numbered from the cheapest.
    numbered = {str(i): record for i, record in enumerate(points, start=1)}
    _print_subnets("front", numbered, ["macs", "params", *objective.front])


def subnet_record(evaluations: Evaluations, found: Estimate, costs: Mapping[str, ArchCostFn]) -> Record:
    """A measured subnet as JSON data.

    It holds the architecture, every known cost, the accuracy to expect with its 90% interval, the measured
    accuracy with its standard error, and what was predicted before the measurement; the predictions are null
    where no predictor proposed the subnet.
    """
    candidate = found.candidate
    record: Record = {"arch": decode(evaluations.space, candidate.row).model_dump(mode="json")}
    for name, cost in costs.items():
        value = cost(candidate.row[None])[0].item()
        # Infinite is what is not known: a resolution that a latency table does not cover.
        record[KEYS[name]] = value if math.isfinite(value) else None
    prediction = candidate.prediction
    return record | {
        "expected_accuracy": found.accuracy,
        "expected_std": found.std,
        "expected_interval": found.interval,
        "val_accuracy": candidate.val_accuracy,
        "val_std": evaluations.noise(candidate.val_accuracy),
        "source": candidate.source,
        "predicted_accuracy": prediction and prediction.predicted_accuracy,
        "predicted_std": prediction and prediction.predicted_std,
        "interval": prediction and prediction.interval,
    }


def _finalist_record(found: Explored, finalist: Finalist, costs: Mapping[str, ArchCostFn]) -> Record:
    """A finalist as JSON data: the measured subnet, and its accuracy after the short tuning."""
    record = subnet_record(found.evaluations, finalist.estimate, costs)
    return record | {"tuned_accuracy": finalist.tuned_accuracy, "tuned_epochs": FINALIST_EPOCHS}


def _flat(record: Record) -> Record:
    """One line of a CSV file: numbers, then the architecture, whose lists are joined by dashes."""
    # Predictions and intervals are in the JSON file only.
    row = {}
    for name in (*KEYS.values(), "expected_accuracy", "val_accuracy", "source", "weights_sha256"):
        if name in record:
            row[name] = record[name]
    for name, value in record["arch"].items():
        row[name] = "-".join(map(str, value)) if isinstance(value, list) else value
    return row


def _print_subnets(title: str, subnets: Mapping[str, Record], costs: Sequence[str]) -> None:
    costs = list(dict.fromkeys(costs))  # each once, in order: several budgets may limit the same cost
    heads = ["MACs" if name == "macs" else name for name in costs]
    table = Table(title, *heads, "expected", "measured", "res", "depth")
    for name, record in subnets.items():
        table.add_row(
            name,
            *[format_cost(cost, record[KEYS[cost]]) for cost in costs],
            format_expected(record["expected_accuracy"], record["expected_interval"]),
            f"{100 * record['val_accuracy']:.1f} ± {100 * record['val_std']:.1f}%",
            str(record["arch"]["resolution"]),
            "-".join(map(str, record["arch"]["depth"])),
        )
    show(table)


def _latency_sentence(name: str, record: Record) -> str:
    """What was predicted of a selected subnet whose latency is limited, and what was timed."""
    bound, timed = record.get("latency_bound_ms"), record.get("latency_measured_ms")
    sentence = f"{name}: predicted to take {format_cost('latency', record['latency_ms'])}"
    if bound and bound > record["latency_ms"]:
        sentence += f", {format_cost('latency', bound)} at most"
    if timed is not None:
        sentence += f"; timed here: {format_cost('latency', timed)}"
    return sentence + "."


def print_trust(quality: CandidateQuality, explored: Sequence[Explored]) -> None:
    """Print how good the predictions were, in cross-validation and of candidates before they were measured.

    The second is what a selection rests on. Candidates are similar and nearly equally good, so a predictor
    ranks them worse than it ranks subnets of all sizes.
    """
    table = Table("predictions of", "Kendall tau", "inside 90% intervals", "too hopeful by")
    table.add_row(
        f"cross-validation: {len(quality.ratios)} subnets",
        format_tau(quality.tau),
        f"{quality.coverage:.0%}",
        "-",
    )
    for found in explored:
        own = found.own
        if own is None:
            continue
        name = f"{found.objective.name}: {counted(own.predictions, 'candidate')}"
        if own.coverage is None or own.hopeful is None:
            table.add_row(name, "too few to tell", "too few to tell", "too few to tell")
        else:
            table.add_row(
                name, format_tau(own.tau), f"{own.coverage:.0%}", f"{100 * own.hopeful:z.2f} points"
            )
    show(table)
    said = chance_sentence(quality.tau, len(quality.ratios), explored[0].evaluations.images)
    if said:
        print(said)
