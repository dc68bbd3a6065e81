"""What a report tells, as data: selected subnets, and all that was measured on validation and test images."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from pydantic import BaseModel

from engine.checkpoint import check_digests
from engine.config import budget_order, validate
from engine.run import FRONT, read_json
from engine.statistics import Z_90, Counts, Floats
from ofa.space.arch import Arch, largest, smallest
from ofa.space.codes import Codes, decode, encode
from ofa.space.space import Space
from ofa.tuned import select_again
from predictors.accuracy.cross_validation import CrossValidated
from predictors.accuracy.pairs import Selected, read_pairs, read_selected
from predictors.reporting.comparison import Comparison, compare_with_rivals, points_apart
from predictors.reporting.exported import ExportedFile
from predictors.reporting.rivals import FEWEST_RIVALS
from predictors.search.constraints import EXACT_DIGITS, FLAGS, ArchCostFn, format_cost

Kind = Literal["selected", "random", "smallest", "largest"]
# Which test images a subnet classified correctly, 1 or 0 (N,), by its kind and its budget.
Hits = dict[tuple[Kind, str], Floats]
KnownKind = Literal["selected", "candidate", "collected", "smallest", "largest"]


class SubnetRecord(Selected):
    """A subnet as predictors.select wrote it.

    latency_*: only if it had a latency table: the predicted median, what nine of ten subnets stay below, and
    the median that was timed on this machine.
    expected_*: what the predictor and the measurements say together, its standard deviation and 90% interval.
    """

    params: int | None = None
    latency_ms: float | None = None
    latency_bound_ms: float | None = None
    latency_measured_ms: float | None = None
    expected_accuracy: float | None = None
    expected_std: float = 0.0
    expected_interval: tuple[float, float] | None = None
    predicted_std: float | None = None
    interval: tuple[float, float] | None = None

    def predicted_interval(self) -> tuple[float, float] | None:
        """The 90% interval of the prediction: as written, or else 1.64 standard deviations to both sides."""
        if self.interval or self.predicted_accuracy is None or self.predicted_std is None:
            return self.interval
        half = Z_90 * self.predicted_std
        return max(self.predicted_accuracy - half, 0.0), min(self.predicted_accuracy + half, 1.0)


class LimitRecord(BaseModel):
    """A limit of a cost (`limit`) and the cost of the selected subnet (`value`), in the same unit."""

    name: Literal["macs", "latency", "size", "memory", "params"]
    limit: float
    value: float

    def __str__(self) -> str:
        return f"{FLAGS[self.name]} {format_cost(self.name, self.limit, EXACT_DIGITS)}"


class ProposedRecord(BaseModel):
    """How good the predictions were of what a search proposed and then measured; none where it was too few.

    predictions: how many.
    tau: Kendall's tau-b of predicted and measured accuracies.
    coverage: share of the measurements that are inside the intervals.
    hopeful: mean of predicted - measured, in accuracy.
    """

    predictions: int
    tau: float | None = None
    coverage: float | None = None
    hopeful: float | None = None


class SelectedRecord(SubnetRecord):
    """A file of selected/: the subnet, how it was selected, and the other candidates, best first.

    half: the best measured subnet within half of the limits, if there is one.
    """

    # Defaults, since a file may hold no more than a subnet and its accuracy.
    constraints: tuple[LimitRecord, ...] = ()
    explore: str = ""
    pairs: int | None = None
    seed: int | None = None
    half: SubnetRecord | None = None
    predicted_candidates: ProposedRecord | None = None
    candidates: tuple[SubnetRecord, ...] = ()


class SelectedSubnet(NamedTuple):
    """A file of selected/: its name, what it says, its architecture in full, and when it was written."""

    name: str
    record: SelectedRecord
    arch: Arch
    written: datetime


class KnownSubnet(NamedTuple):
    """A subnet that was measured on validation images. name: of the files that selected it."""

    macs: int
    latency_ms: float | None
    val_accuracy: float
    kind: KnownKind
    name: str
    arch: Arch


class TestedSubnet(NamedTuple):
    """A subnet that was measured on test images. budget: the selected subnet that it is compared with."""

    budget: str
    kind: Kind
    macs: int
    params: int
    test_accuracy: float
    latency_ms: float | None


class Findings(NamedTuple):
    """Everything that a report shows.

    run: the name of its folder.
    images: how many there are by split, "val" and "test".
    comparisons: the smallest subnet, the selected ones in order of budget, the largest subnet.
    exported: files of the selected subnets.
    judged: collected pairs predicted from each other; none if they are too few.
    pairs: how many pairs were collected.
    confusions: of the selected subnets on test images (K, K) by budget, as `confusion` counts them.
    weights_sha256: of the supernet.
    """

    run: str
    space: Space
    classes: tuple[str, ...]
    images: dict[str, int]
    selected: list[SelectedSubnet]
    known: list[KnownSubnet]
    tested: list[TestedSubnet]
    comparisons: list[Comparison]
    exported: list[ExportedFile]
    judged: CrossValidated | None
    pairs: int
    confusions: dict[str, Counts]
    weights_sha256: str


def read_selected_subnets(run: Path, space: Space, latency: ArchCostFn | None) -> list[SelectedSubnet]:
    """What predictors.select selected, in the order of the MACs that were allowed.

    Without a limit of MACs, the MACs of the subnet count instead. Equal ones are ordered by MACs and by name.

    Args:
        run: the run folder.
        space: of the run.
        latency: the latency function of a device. Without one the latency in each file counts, if it has one.

    Raises:
        UserError: nothing is selected yet, or a file is damaged.
    """
    found = []
    for name, _ in read_selected(run):
        path = run / "selected" / f"{name}.json"
        record = validate(SelectedRecord, read_json(path), str(path))
        written = datetime.fromtimestamp(path.stat().st_mtime).astimezone()
        row = encode(space, record.arch)
        if latency is not None:
            (ms,) = known_latencies(latency, row[None])
            record = record.model_copy(update={"latency_ms": ms})
        found.append(SelectedSubnet(name, record, decode(space, row), written))
    return sorted(found, key=_budget_order)


def _budget_order(subnet: SelectedSubnet) -> tuple[float, int, tuple[list[float], str]]:
    macs = subnet.record.macs
    limits = [limit.limit for limit in subnet.record.constraints if limit.name == "macs"]
    return limits[0] if limits else macs, macs, budget_order(subnet.name)


def read_known_subnets(
    run: Path, space: Space, selected: list[SelectedSubnet], latency: ArchCostFn | None
) -> list[KnownSubnet]:
    """Every subnet that was measured on validation images, once each, fewest MACs first.

    Args:
        run: the run folder.
        space: of the run.
        selected: what `read_selected_subnets` returned.
        latency: the latency function of a device. Without one only the files say it, of some subnets.

    Raises:
        UserError: a file is damaged.
    """
    path = run / "selected" / FRONT
    rows = read_json(path) if path.exists() else []
    front = [validate(SubnetRecord, row, f"{path}, subnet {i}") for i, row in enumerate(rows, start=1)]
    stated = {f"{path}, subnet {i}": record.weights_sha256 for i, record in enumerate(front, start=1)}
    check_digests(run, stated, select_again(run))
    found: dict[bytes, KnownSubnet] = {}

    # A subnet may be selected, a candidate and collected at once. The kind that is added first stays, so the
    # most important kind is added first.
    def add(record: SubnetRecord, kind: KnownKind, name: str = "") -> None:
        row = encode(space, record.arch)
        known = KnownSubnet(
            record.macs, record.latency_ms, record.val_accuracy, kind, name, decode(space, row)
        )
        found.setdefault(row.tobytes(), known)

    names = {arch: ", ".join(s.name for s in same) for arch, same in by_arch(selected).items()}
    for subnet in selected:
        add(subnet.record, "selected", names[subnet.arch])
    for subnet in selected:
        for record in subnet.record.candidates:
            add(record, "candidate")
    for record in front:
        add(record, "candidate")
    for pair in read_pairs(run):
        row = encode(space, pair.arch)
        known = KnownSubnet(pair.macs, None, pair.val_accuracy, "collected", "", decode(space, row))
        found.setdefault(row.tobytes(), known)
    for kind, arch in extremes(space).items():
        key = encode(space, arch).tobytes()
        # Only if they were measured, and not if they were selected, which is the more important kind.
        if key in found and found[key].kind != "selected":
            found[key] = found[key]._replace(kind=kind, name=kind)
    subnets = list(found.values())
    if latency is not None:
        times = known_latencies(latency, np.stack([np.frombuffer(row, np.uint8) for row in found]))
        subnets = [s._replace(latency_ms=t) for s, t in zip(subnets, times, strict=True)]
    return sorted(subnets, key=_macs)


def known_latencies(latency: ArchCostFn, codes_NF: Codes) -> list[float | None]:
    """Milliseconds of encoded architectures; None at resolutions that the latency table does not cover."""
    return [float(ms) if np.isfinite(ms) else None for ms in latency(codes_NF)]


def _macs(subnet: KnownSubnet) -> int:
    return subnet.macs


def extremes(space: Space) -> dict[Literal["smallest", "largest"], Arch]:
    """The two ends of a space."""
    return {"smallest": smallest(space), "largest": largest(space)}


def by_arch(selected: Sequence[SelectedSubnet]) -> dict[Arch, list[SelectedSubnet]]:
    """Selected subnets of the same architecture together: several budgets may have the same best one."""
    found: dict[Arch, list[SelectedSubnet]] = {}
    for subnet in selected:
        found.setdefault(subnet.arch, []).append(subnet)
    return found


def short_names(selected: Sequence[SelectedSubnet]) -> dict[str, str]:
    """The names of selected subnets without the limits that all of them have, for places with little room.

    `100k-15ms-size20MB` and `1M-15ms-size20MB` become `100k` and `1M`. Names of which nothing would be left,
    or that would be equal, stay as they are.
    """
    limits = {s.name: s.name.split("-") for s in selected}
    shared = set.intersection(*map(set, limits.values())) if len(limits) > 1 else set()
    short = {}
    for name, words in limits.items():
        short[name] = "-".join(word for word in words if word not in shared)
    if not all(short.values()) or len(set(short.values())) < len(short):
        return {name: name for name in limits}
    return short


def compare_subnets(
    space: Space,
    selected: Sequence[SelectedSubnet],
    known: Sequence[KnownSubnet],
    tested: Sequence[TestedSubnet],
    hits: Hits,
    tuned: Mapping[str, float],
    asked: int,
) -> list[Comparison]:
    """The smallest subnet, the selected ones, and the largest, each beside what was tested of its size.

    Args:
        space: of the run.
        selected: in order of budget.
        known: all that was measured on validation images.
        tested: all that was measured on test images.
        hits: of all of these but the random ones.
        tuned: test accuracy of the selected subnets that were tuned, by budget.
        asked: how many random subnets were asked for. Where that is less than 5, so many are enough.
    """
    subnets = {(t.kind, t.budget): t for t in tested if t.kind != "random"}
    rivals = _rivals_by_budget(tested)
    most_hits, most_macs = hits["largest", ""], subnets["largest", ""].macs

    def compare(subnet: TestedSubnet, record: SubnetRecord | None, val_accuracy: float | None) -> Comparison:
        others = rivals.get(subnet.budget, [])
        random = compare_with_rivals(subnet.macs, subnet.test_accuracy, others, min(FEWEST_RIVALS, asked))
        below, below_std = points_apart(most_hits, hits[subnet.kind, subnet.budget])
        low, high = (record.expected_interval if record else None) or (None, None)
        return Comparison(
            budget=subnet.budget or subnet.kind,
            kind=subnet.kind,
            macs=subnet.macs,
            params=subnet.params,
            latency_ms=subnet.latency_ms,
            expected_accuracy=record.expected_accuracy if record else None,
            expected_low=low,
            expected_high=high,
            val_accuracy=val_accuracy,
            test_accuracy=subnet.test_accuracy,
            tuned_accuracy=tuned.get(subnet.budget),
            random_count=random.others,
            random_median=random.median,
            random_beaten=random.beaten,
            random_macs_apart=random.macs_apart,
            below_largest=below,
            below_std=below_std,
            share_of_largest=subnet.macs / most_macs,
        )

    found = []
    for s in selected:
        found.append(compare(subnets["selected", s.name], s.record, s.record.val_accuracy))
    known_accuracies = {subnet.arch: subnet.val_accuracy for subnet in known}
    ends = extremes(space)
    lowest = compare(subnets["smallest", ""], None, known_accuracies.get(ends["smallest"]))
    highest = compare(subnets["largest", ""], None, known_accuracies.get(ends["largest"]))
    return [lowest, *found, highest]


def _rivals_by_budget(tested: Sequence[TestedSubnet]) -> dict[str, list[tuple[int, float]]]:
    """MACs and test accuracies of the random subnets beside each selected one."""
    rivals: dict[str, list[tuple[int, float]]] = {}
    for t in tested:
        if t.kind == "random":
            rivals.setdefault(t.budget, []).append((t.macs, t.test_accuracy))
    return rivals
