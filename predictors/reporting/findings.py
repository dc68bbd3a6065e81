"""What a report tells, as data: chosen subnets with their limits, everything measured on validation images,
and tests."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from pydantic import BaseModel

from engine.config import validate
from engine.run import read_json
from ofa.space.arch import Arch, largest, smallest
from ofa.space.codes import decode, encode
from ofa.space.space import Space
from predictors.accuracy.cross_validation import HeldOut
from predictors.accuracy.pairs import FRONT, Selected, read_pairs, read_selected
from predictors.search.constraints import FLAGS, Costs, format_cost

Z_90 = 1.6449
Kind = Literal["selected", "random", "smallest", "largest"]


class Facts(Selected):
    """A subnet that predictors.select measured. latency_ms: if it knew a device."""

    params: int | None = None
    latency_ms: float | None = None
    predicted_std: float | None = None
    interval: tuple[float, float] | None = None

    def predicted_interval(self) -> tuple[float, float] | None:
        """The 90% interval of the prediction: as it was written or, without one, 1.64 standard deviations to
        both sides."""
        if self.interval or self.predicted_accuracy is None or self.predicted_std is None:
            return self.interval
        half = Z_90 * self.predicted_std
        return max(self.predicted_accuracy - half, 0.0), min(self.predicted_accuracy + half, 1.0)


class Limit(BaseModel):
    """What a cost was allowed to be, and what it is."""

    name: Literal["macs", "latency", "size", "memory", "params"]
    limit: float
    value: float

    def __str__(self) -> str:
        return f"{FLAGS[self.name]} {format_cost(self.name, self.limit, 15)}"


class Choice(Facts):
    """A file of selected/: the subnet, why it was chosen, and the other candidates, best first."""

    constraints: tuple[Limit, ...] = ()
    explore: str = ""
    pairs: int | None = None
    seed: int | None = None
    candidates: tuple[Facts, ...] = ()


class Chosen(NamedTuple):
    """A choice with the name of its file, its architecture in full, and when the file was written."""

    name: str
    choice: Choice
    arch: Arch
    written: datetime


class Known(NamedTuple):
    """A subnet that was measured on validation images. name: the choices that it is."""

    macs: int
    latency_ms: float | None
    val_accuracy: float
    kind: Literal["selected", "candidate", "collected", "smallest", "largest"]
    name: str
    arch: Arch


class Tested(NamedTuple):
    """A subnet that was measured on test images. budget: which choice it is compared with."""

    budget: str
    kind: Kind
    macs: int
    params: int
    test_accuracy: float
    latency_ms: float | None


class Comparison(NamedTuple):
    """A choice against random subnets of its size, on test images. apart: the largest relative difference of
    their MACs from its own."""

    budget: str
    macs: int
    val_accuracy: float
    test_accuracy: float
    random_median: float
    random_beaten: int
    random_count: int
    random_macs_apart: float


class Findings(NamedTuple):
    """Everything that a report shows; `judged` only if there are enough pairs."""

    run: str
    space: Space
    classes: tuple[str, ...]
    images: dict[str, int]
    chosen: list[Chosen]
    known: list[Known]
    tested: list[Tested]
    comparisons: list[Comparison]
    judged: HeldOut | None
    pairs: int


def read_chosen(run: Path, space: Space, latency: Costs | None) -> list[Chosen]:
    """What predictors.select chose, in the order of the MACs that were allowed (or else are used), then by
    name.

    latency: of a device; without one, what the files say.

    Raises:
        UserError: it has not chosen anything yet, or a file is damaged.
    """
    found = []
    for name, _ in read_selected(run):
        path = run / "selected" / f"{name}.json"
        choice = validate(Choice, read_json(path), str(path))
        written = datetime.fromtimestamp(path.stat().st_mtime).astimezone()
        row = encode(space, choice.arch)
        if latency is not None:
            choice = choice.model_copy(update={"latency_ms": float(latency(row[None])[0])})
        found.append(Chosen(name, choice, decode(space, row), written))
    return sorted(
        found,
        key=lambda c: (
            next((x.limit for x in c.choice.constraints if x.name == "macs"), c.choice.macs),
            c.choice.macs,
            c.name,
        ),
    )


def read_known(run: Path, space: Space, chosen: list[Chosen], latency: Costs | None) -> list[Known]:
    """Every subnet that was measured on validation images, once each, fewest MACs first.

    latency: of a device; without one, that of subnets whose files say it.
    """
    path = run / "selected" / FRONT
    rows = read_json(path) if path.exists() else []
    front = [validate(Facts, row, f"{path}, subnet {i}") for i, row in enumerate(rows, start=1)]
    found: dict[bytes, Known] = {}

    def add(facts: Selected, kind: Literal["selected", "candidate"], name: str = "") -> None:
        code = encode(space, facts.arch)
        known = facts.latency_ms if isinstance(facts, Facts) else None
        found.setdefault(
            code.tobytes(), Known(facts.macs, known, facts.val_accuracy, kind, name, decode(space, code))
        )

    for c in chosen:
        add(c.choice, "selected", ", ".join(same.name for same in by_arch(chosen)[c.arch]))
    for facts in [*(f for c in chosen for f in c.choice.candidates), *front]:
        add(facts, "candidate")
    for pair in read_pairs(run):
        code = encode(space, pair.arch)
        found.setdefault(
            code.tobytes(), Known(pair.macs, None, pair.val_accuracy, "collected", "", decode(space, code))
        )
    for kind, arch in extremes(space).items():
        key = encode(space, arch).tobytes()
        if key in found and found[key].kind != "selected":
            found[key] = found[key]._replace(kind=kind, name=kind)
    if latency is not None:
        times = latency(np.stack([np.frombuffer(code, np.uint8) for code in found]))
        found = {
            code: k._replace(latency_ms=float(t)) for (code, k), t in zip(found.items(), times, strict=True)
        }
    return sorted(found.values(), key=lambda k: k.macs)


def extremes(space: Space) -> dict[Literal["smallest", "largest"], Arch]:
    """The two ends of a space."""
    return {"smallest": smallest(space), "largest": largest(space)}


def by_arch(chosen: Sequence[Chosen]) -> dict[Arch, list[Chosen]]:
    """Choices of the same subnet together."""
    found: dict[Arch, list[Chosen]] = {}
    for c in chosen:
        found.setdefault(c.arch, []).append(c)
    return found


def front_of(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of (cost, accuracy) those that are better than every cheaper one, cheapest first."""
    front: list[tuple[float, float]] = []
    for cost, accuracy in sorted(points, key=lambda p: (p[0], -p[1])):
        if not front or accuracy > front[-1][1]:
            front.append((cost, accuracy))
    return front


def compare(chosen: list[Chosen], tested: list[Tested]) -> list[Comparison]:
    """Every choice against the random subnets that were tested beside it."""
    found = []
    for name, choice, _, _ in chosen:
        mine = next(t for t in tested if t.budget == name and t.kind == "selected")
        others = [t for t in tested if t.budget == name and t.kind == "random"]
        accuracy, macs = np.array([t.test_accuracy for t in others]), np.array([t.macs for t in others])
        beaten, apart = int((accuracy < mine.test_accuracy).sum()), float(np.abs(macs / mine.macs - 1).max())
        median = float(np.median(accuracy))
        found.append(
            Comparison(
                name, mine.macs, choice.val_accuracy, mine.test_accuracy, median, beaten, len(others), apart
            )
        )
    return found


def wilson(accuracy: float, images: int) -> tuple[float, float]:
    """90% interval of an accuracy on so many images (Wilson's score interval, which holds near 0 and 1 too).

    It says how far the accuracy on other images of the same kind may be; two subnets on the same images
    differ by less.
    """
    z = Z_90**2 / images
    middle, half = (accuracy + z / 2) / (1 + z), np.sqrt(z * (accuracy * (1 - accuracy) + z / 4)) / (1 + z)
    return float(max(middle - half, 0)), float(min(middle + half, 1))
