"""From a CSV of timings to a latency table: what rounds agree on, how well they agree, and what other
projects' tables say."""

import csv
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from engine.config import read_yaml
from engine.errors import UserError
from engine.onnx_timing import DIFFERENCE_AT_MOST, halves_of
from ofa.blocks.layer_specs import BlockSpec, HeadSpec, LayerSpec, StemSpec, halve
from ofa.space.space import Space
from predictors.latency.kit import OVERHEAD, distinct_layers, layer_name, structure
from predictors.latency.model import LatencyTable, Network, Noise, fingerprint

Clock = Literal["cpu", "wall"]
RELIABILITY_AT_LEAST = 0.9


class Timings(NamedTuple):
    """Milliseconds by item name and round, and what the CSV says about how they were taken."""

    ms: dict[str, dict[int, float]]
    clock: Clock
    threads: int
    runtime: str
    machine: str


def read_timings(path: Path, clock: Clock | None = None) -> Timings:
    """The 20th percentiles in a CSV with columns name, round, wall_p20 and, if the runner could tell,
    cpu_p20, threads, runtime, machine.

    clock: which time counts; none: thread CPU time where there is one thread and the column exists, else wall
        time.

    Raises:
        UserError: the file cannot be read, a column or number is missing, or rows were taken in different
            ways.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    if not rows:
        raise UserError(f"{path} holds no timings; run bench.py of the kit on the device.")
    columns = rows[0].keys()
    ways = {tuple(row.get(key) or "" for key in ("threads", "runtime", "machine")) for row in rows}
    if len(ways) > 1:
        raise UserError(
            f"{path} mixes timings of {len(ways)} devices, runtimes or numbers of threads; keep those of one."
        )
    threads, runtime, machine = ways.pop()
    chosen: Clock = clock or ("cpu" if "cpu_p20" in columns and threads == "1" else "wall")
    missing = [column for column in ("name", "round", f"{chosen}_p20") if column not in columns]
    if missing:
        raise UserError(f"{path} lacks the column {missing[0]}; its columns are {', '.join(columns)}.")
    found: dict[str, dict[int, float]] = {}
    for line, row in enumerate(rows, start=2):
        try:
            ms, turn = float(row[f"{chosen}_p20"]), int(row["round"])
        except (TypeError, ValueError):
            ms, turn = math.nan, 0
        if not (0 < ms < math.inf):
            raise UserError(
                f"{path}, line {line}: round and {chosen}_p20 must be numbers, and more than 0 ms; remove "
                "the line."
            )
        found.setdefault(row["name"], {})[turn] = ms
    return Timings(found, chosen, int(threads or 1), runtime or "unknown", machine)


def value_of(rounds: Mapping[int, float]) -> float:
    """One number for an item: the 20th percentile of its rounds, since whatever disturbs makes it slower."""
    return float(np.percentile(list(rounds.values()), 20))


def noise_of(items: Iterable[Mapping[int, float]]) -> Noise:
    """How well even and odd rounds agree about these items."""
    items = list(items)
    rounds = max(map(len, items), default=0)
    pairs = np.array([halves for item in items if (halves := halves_of(item)) is not None])
    if len(pairs) < 3:
        return Noise(rounds=rounds, reliability=None, relative=None)
    a, b = np.log(pairs).T
    r = float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else 0.0
    return Noise(
        rounds=rounds,
        reliability=max(0.0, 2 * r / (1 + r)) if r > 0 else 0.0,
        relative=float(np.median(np.abs(a - b))),
    )


def complaint(noise: Noise) -> str:
    """Why a table with this noise should not be believed; nothing if it may be."""
    if noise.reliability is None or noise.relative is None:
        return "there are too few rounds or items to tell noise from signal"
    if noise.relative > DIFFERENCE_AT_MOST:
        return (
            f"two halves of the rounds differ by {noise.relative:.0%}, and {DIFFERENCE_AT_MOST:.0%} is the "
            "most"
        )
    if noise.reliability < RELIABILITY_AT_LEAST:
        return (
            f"the split-half reliability is {noise.reliability:.2f}, and {RELIABILITY_AT_LEAST} is the least"
        )
    return ""


def build_table(
    timings: Timings, device: str, space: Space, classes: int, channels: int
) -> tuple[LatencyTable, dict[str, Noise]]:
    """The table, and the noise of what it is made of ("blocks", "networks").

    Raises:
        UserError: the timings are of other items than this space has.
    """
    pieces = {layer_name(p): p for p in distinct_layers(space, classes, channels)}
    nets = {name: rounds for name, rounds in timings.ms.items() if name.startswith("net-")}
    timed = {name: rounds for name, rounds in timings.ms.items() if name in pieces}
    strange = [name for name in timings.ms if name not in pieces and name not in nets and name != OVERHEAD]
    wrong = [name for name in nets if len(name) != 4 + 2 * len(space.columns)]
    if strange or wrong:
        raise UserError(
            f"The timings have items that space '{space.name}' with {classes} classes does not have, such as "
            f"{min(strange or wrong)}; "
            "name the space, or the run, that the kit was made for."
        )
    overhead = value_of(timings.ms[OVERHEAD]) if OVERHEAD in timings.ms else 0.0
    blocks: dict[str, dict[int, float]] = {}
    for name, rounds in timed.items():
        blocks.setdefault(structure(pieces[name]), {})[pieces[name].size] = max(
            value_of(rounds) - overhead, 1e-6
        )
    networks = tuple(
        Network(codes=name.removeprefix("net-"), ms=value_of(rounds)) for name, rounds in nets.items()
    )
    sizes = {p.size for name, p in pieces.items() if name in timed and isinstance(p, StemSpec)}
    sizes |= {space.resolution[int(network.codes[:2], 16) - 1] for network in networks}
    noises = {
        what: noise_of(items.values()) for what, items in (("blocks", timed), ("networks", nets)) if items
    }
    if not noises:
        raise UserError(f"The timings hold neither blocks nor networks of space '{space.name}'.")
    table = LatencyTable(
        device=device,
        runtime=timings.runtime,
        machine=timings.machine,
        threads=timings.threads,
        clock=timings.clock,
        space=space.name,
        fingerprint=fingerprint(space),
        classes=classes,
        channels=channels,
        resolutions=tuple(sorted(sizes)),
        noise=noises.get("networks", noises.get("blocks", noise_of([]))),
        blocks=blocks,
        networks=networks,
    )
    return table, noises


def read_published(paths: tuple[Path, ...], device: str, space: Space, channels: int = 3) -> LatencyTable:
    """OFA's and ProxylessNAS's tables (YAML; for each layer a mean in milliseconds), one file or several for
    several resolutions.

    They know 1,000 classes. OFA's keys tell squeeze-and-excitation and hard swish apart, ProxylessNAS's have
    neither.

    Raises:
        UserError: they lack layers of this space at every resolution.
    """
    known: dict[str, float] = {}
    for path in paths:
        for key, entry in read_yaml(path).items():
            known[re.sub(r"-se:0-hs:0$", "", key)] = _mean(entry, f"{path}, {key}")
    blocks: dict[str, dict[int, float]] = {}
    lacking: dict[int, str] = {}
    pieces = distinct_layers(space, 1000, channels)
    for piece in pieces:
        keys = published_keys(piece)
        absent = next((key for key in keys if key not in known and not key.startswith("AvgPool2D")), None)
        if absent is None:
            blocks.setdefault(structure(piece), {})[piece.size] = sum(known.get(key, 0.0) for key in keys)
        else:
            lacking[piece.size] = absent
    resolutions = tuple(
        r
        for r in space.resolution
        if all(b in blocks and s in blocks[b] for b, s in _needed(space, r, channels))
    )
    if not resolutions:
        example = lacking[max(lacking)]
        raise UserError(
            f"{paths[0]} has no resolution at which space '{space.name}' is complete; it lacks, for example, "
            f"{example}."
        )
    return LatencyTable(
        device=device,
        runtime="unknown",
        threads=1,
        clock="unknown",
        space=space.name,
        fingerprint=fingerprint(space),
        classes=1000,
        channels=channels,
        resolutions=resolutions,
        noise=Noise(rounds=1, reliability=None, relative=None),
        blocks=blocks,
    )


def _needed(space: Space, resolution: int, channels: int) -> list[tuple[str, int]]:
    alone = space.model_copy(update={"resolution": (resolution,)})
    alone = Space.model_validate(alone.model_dump())
    return [(structure(p), p.size) for p in distinct_layers(alone, 1000, channels)]


def _mean(entry: Any, where: str) -> float:
    value = entry.get("mean") if isinstance(entry, dict) else entry
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise UserError(f"{where} has no mean in milliseconds.")
    return float(value)


def published_keys(piece: LayerSpec) -> list[str]:
    """The layers of the published format whose latencies make up the piece. AvgPool2D may be absent: it is
    then part of Logits."""
    s = piece.size
    match piece:
        case StemSpec():
            return [f"Conv-input:{s}x{s}x{piece.channels}-output:{_map(halve(s, piece.stride), piece.width)}"]
        case BlockSpec():
            flags = f"-se:{int(piece.se)}-hs:{int(piece.act == 'hard_swish')}"
            return [
                f"expanded_conv-input:{_map(s, piece.inp)}-output:{_map(halve(s, piece.stride), piece.out)}-"
                f"expand:{piece.hidden}"
                f"-kernel:{piece.kernel}-stride:{piece.stride}-"
                f"idskip:{int(piece.residual)}{'' if flags == '-se:0-hs:0' else flags}"
            ]
        case HeadSpec(wide=wide, width=width) if width:
            pool = f"AvgPool2D-input:{_map(s, wide)}-output:{_map(1, wide)}"
            mix, logits = (
                f"Conv_2-input:{_map(1, wide)}-output:{_map(1, width)}",
                f"Logits-input:{_map(1, width)}",
            )
            return [
                f"Conv_1-input:{_map(s, piece.inp)}-output:{_map(s, wide)}",
                pool,
                mix,
                f"{logits}-output:{piece.classes}",
            ]
        case HeadSpec(wide=wide):
            return [
                f"Conv_1-input:{_map(s, piece.inp)}-output:{_map(s, wide)}",
                f"Logits-input:{_map(s, wide)}-output:{piece.classes}",
            ]


def _map(side: int, channels: int) -> str:
    return f"{side}x{side}x{channels}"
