"""From a CSV of timings to a latency table, with how well the rounds agree."""

import csv
import math
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from engine.blocks.latency_table import LatencyTable, Noise, TimedNetwork
from engine.blocks.layers import LayerSpec, layer_name, structure
from engine.blocks.stem import StemSpec
from engine.errors import UserError, shortened
from engine.onnx_timing import DIFFERENCE_AT_MOST, halves_of
from ofa.space.space import Space
from predictors.latency.kit import OVERHEAD, distinct_layers
from predictors.latency.table import row_of_codes, space_fingerprint

Clock = Literal["cpu", "wall"]
Rounds = Mapping[int, float]  # milliseconds of an item by round
RELIABILITY_AT_LEAST = 0.9  # of halves of the rounds, for a table to be saved
LEAST_MS = 1e-6  # of a block that was timed no slower than the overhead: a latency is never negative


class Timings(NamedTuple):
    """Milliseconds by item name and round, and what the CSV says about how they were taken.

    ms: the median run of each visit.
    p90: the 90th percentile of its runs; empty if the CSV does not have it.
    """

    ms: dict[str, dict[int, float]]
    p90: dict[str, dict[int, float]]
    clock: Clock
    threads: int
    runtime: str
    machine: str


def read_timings(path: Path, clock: Clock | None = None) -> Timings:
    """The medians in a CSV with columns name, round and wall_p50, and the 90th percentiles if there are any.

    It may also have the columns wall_p90, cpu_p50, cpu_p90, threads, runtime and machine, if the runner could
    tell.

    Args:
        path: the CSV.
        clock: which time counts. None: the CPU time of the thread, if there is one thread and the CSV has the
            column, else wall time.

    Raises:
        UserError: the file cannot be read, a column or number is missing, or rows were taken in different
            ways.
    """
    rows = _read_rows(path)
    columns = rows[0].keys()
    ways = {(row.get("threads") or "", row.get("runtime") or "", row.get("machine") or "") for row in rows}
    if len(ways) > 1:
        raise UserError(
            f"{path} mixes timings of {len(ways)} devices, runtimes or numbers of threads; keep those of one."
        )
    threads, runtime, machine = ways.pop()
    if clock is None:
        # CPU time hardly sees other programs; with several threads it is not the time that one waits.
        clock = "cpu" if "cpu_p50" in columns and threads == "1" else "wall"
    for column in ("name", "round", f"{clock}_p50"):
        if column not in columns:
            known = shortened(", ".join(map(str, columns)))
            raise UserError(f"{path} lacks the column {column}; its columns are {known}.")
    if re.fullmatch("[0-9]{0,4}", threads) is None:
        raise UserError(
            f"{path}: threads = {shortened(threads)} is not a number of threads; repair the column."
        )
    ms = _by_item(rows, f"{clock}_p50", path)
    p90 = _by_item(rows, f"{clock}_p90", path) if f"{clock}_p90" in columns else {}
    return Timings(ms, p90, clock, int(threads or 1), runtime or "unknown", machine)


def _read_rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    if not rows:
        raise UserError(f"{path} holds no timings; run bench.py of the kit on the device.")
    return rows


def _by_item(rows: Sequence[Mapping[str, str]], column: str, path: Path) -> dict[str, dict[int, float]]:
    """The numbers of one column by item name and round."""
    found: dict[str, dict[int, float]] = {}
    # Line 1 of the file names the columns.
    for line, row in enumerate(rows, start=2):
        try:
            ms, turn = float(row[column]), int(row["round"])
        except (TypeError, ValueError):
            ms, turn = math.nan, 0  # the sentence below names the line
        if not (0 < ms < math.inf) or not row["name"]:
            raise UserError(
                f"{path}, line {line}: round and {column} must be numbers, and more than 0 ms, of an item "
                "that is named; remove the line."
            )
        found.setdefault(row["name"], {})[turn] = ms
    return found


def value_of(rounds: Rounds) -> float:
    """One number for an item: the median of its rounds, since the median run is what selection limits."""
    return float(np.median(list(rounds.values())))


def noise_of(items: Iterable[Rounds]) -> Noise:
    """How well even and odd rounds agree about these items; unknown with fewer than 3 items in both."""
    items = list(items)
    most_rounds = max(map(len, items), default=0)
    pairs = []
    for item in items:
        halves = halves_of(item)
        if halves is not None:
            pairs.append(halves)
    if len(pairs) < 3:
        return Noise(rounds=most_rounds, reliability=None, relative=None)
    # Logarithms: small and large items count the same.
    even, odd = np.log(pairs).T
    r = float(np.corrcoef(even, odd)[0, 1]) if even.std() > 0 and odd.std() > 0 else 0.0
    # Spearman and Brown: the reliability of all rounds, from the correlation of two halves of them.
    reliability = max(0.0, 2 * r / (1 + r)) if r > 0 else 0.0
    relative = float(np.median(np.abs(even - odd)))
    return Noise(rounds=most_rounds, reliability=reliability, relative=relative)


def noise_complaint(noise: Noise) -> str:
    """Why a table with this noise should not be believed; an empty string if it may be."""
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
    """Build the latency table of a device from the timings of a kit.

    Args:
        timings: what `read_timings` returned.
        device: the name of the device.
        space: for which the kit was made.
        classes: outputs of the classifier.
        channels: of the input images.

    Returns:
        The table, and the noise of each kind of items in it ("blocks", "networks").

    Raises:
        UserError: the timings are of other items than this space has, or of none.
    """
    layers = {layer_name(layer): layer for layer in distinct_layers(space, classes, channels)}
    _refuse_strange_items(timings, set(layers), space, classes)
    found = tabulate(timings, layers)
    if not found.noises:
        raise UserError(f"The timings hold neither blocks nor networks of space '{space.name}'.")
    # The first code of a row is that of the resolution.
    resolutions = {space.resolution[int(network.codes[:2], 16) - 1] for network in found.networks}
    table = LatencyTable(
        device=device,
        runtime=timings.runtime,
        machine=timings.machine,
        threads=timings.threads,
        clock=timings.clock,
        space=space.name,
        fingerprint=space_fingerprint(space),
        classes=classes,
        channels=channels,
        resolutions=tuple(sorted(resolutions | found.resolutions)),
        noise=found.noise,
        blocks=found.blocks,
        networks=found.networks,
    )
    return table, found.noises


class Tabulated(NamedTuple):
    """What timings say of layers and networks.

    Args:
        blocks: milliseconds by structure and by the side of the input map.
        networks: whole networks.
        resolutions: sides of the images of the stems among the layers.
        noises: of each kind of items.
    """

    blocks: dict[str, dict[int, float]]
    networks: tuple[TimedNetwork, ...]
    resolutions: set[int]
    noises: dict[str, Noise]

    @property
    def noise(self) -> Noise:
        """That of the networks, or else of the blocks."""
        return self.noises.get("networks") or self.noises["blocks"]


def tabulate(timings: Timings, layers: Mapping[str, LayerSpec]) -> Tabulated:
    """The numbers of a latency table; `layers`: those that were timed, by their names as items."""
    layer_ms, network_ms = _layers_and_networks(timings, layers)
    # Running a session costs something, however little it computes; a network pays it once.
    overhead = value_of(timings.ms[OVERHEAD]) if OVERHEAD in timings.ms else 0.0
    blocks: dict[str, dict[int, float]] = {}
    resolutions = set[int]()
    for name, measured in layer_ms.items():
        layer = layers[name]
        blocks.setdefault(structure(layer), {})[layer.size] = max(value_of(measured) - overhead, LEAST_MS)
        if isinstance(layer, StemSpec):
            resolutions.add(layer.size)
    networks = []
    for name, measured in network_ms.items():
        codes = name.removeprefix("net-")
        slow = value_of(timings.p90[name]) if timings.p90 else None
        networks.append(TimedNetwork(codes=codes, ms=value_of(measured), p90_ms=slow))
    noises = _noises(layer_ms, network_ms)
    return Tabulated(blocks, tuple(networks), resolutions, noises)


def _layers_and_networks(
    timings: Timings, layers: Container[str]
) -> tuple[dict[str, Rounds], dict[str, Rounds]]:
    """The timings of layers, and those of whole networks, by item name."""
    layer_ms: dict[str, Rounds] = {}
    network_ms: dict[str, Rounds] = {}
    for name, rounds in timings.ms.items():
        if name in layers:
            layer_ms[name] = rounds
        elif name != OVERHEAD:
            network_ms[name] = rounds
    return layer_ms, network_ms


def _noises(layer_ms: Mapping[str, Rounds], network_ms: Mapping[str, Rounds]) -> dict[str, Noise]:
    """The noise of blocks and of whole networks, each only if some were timed."""
    noises: dict[str, Noise] = {}
    if layer_ms:
        noises["blocks"] = noise_of(layer_ms.values())
    if network_ms:
        noises["networks"] = noise_of(network_ms.values())
    return noises


def _refuse_strange_items(timings: Timings, layers: set[str], space: Space, classes: int) -> None:
    strange: list[str] = []
    wrong: list[str] = []
    for name in timings.ms:
        if name.startswith("net-"):
            if row_of_codes(name.removeprefix("net-"), space) is None:
                wrong.append(name)
        elif name not in layers and name != OVERHEAD:
            strange.append(name)
    if strange or wrong:
        raise UserError(
            f"The timings have items that space '{space.name}' with {classes} classes does not have, such as "
            f"{shortened(min(strange or wrong))}; name the space, or the run, that the kit was made for."
        )
