"""Measure how long architectures take on a device, and keep it as a latency table for predictors.select."""

import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, get_args

import numpy as np
from pydantic import Field
from rich.table import Table

from engine.blocks.latency_table import LatencyTable, Noise, read_table
from engine.blocks.layers import LayerSpec, layer_name, structure
from engine.command.cli import Command, main
from engine.command.progress import progress
from engine.command.start import say
from engine.command.table import show
from engine.config import counted, validate
from engine.errors import UserError
from engine.onnx_timing import bench, finished
from engine.run import read_json, write_json
from engine.seed import numpy_generator
from ofa.cost import costs_of
from ofa.space.codes import Codes, sample_codes
from ofa.space.space import Space, load_space
from ofa.trained import SupernetModel, run_flag
from oneshot.chains.layers import ImageShape
from oneshot.chains.space import ChainSpace
from predictors.latency.additive import Level
from predictors.latency.chains import (
    build_chain_table,
    chain_space_named,
    error_of_sums,
    export_chain_kit,
    timed_layers,
)
from predictors.latency.kit import distinct_layers, export_kit
from predictors.latency.model import LatencyModel, cross_validated
from predictors.latency.published import read_published
from predictors.latency.timings import build_table, noise_complaint, read_timings
from predictors.search.constraints import format_cost

RESOLUTIONS = 5  # at most so many, unless --resolutions names them; latency in between is interpolated
# For the estimate of the duration that is printed at the start.
SECONDS_PER_STRUCTURE = 0.02  # to write one ONNX file
SECONDS_PER_SESSION = 0.02  # to open one


class SpaceToMeasure(NamedTuple):
    """The space whose architectures are timed, with the number of classes and of input channels."""

    space: Space
    classes: int
    channels: int


class Measure(Command):
    """Time every block of a space, and some whole networks, in onnxruntime; write them as a latency table.

    Weights do not matter, so a space is enough (--space); a run (--run) also knows its classes and channels.
    On this machine: leave out --export-kit and --import-kit. An interrupted command continues when it is
    given again. For another device: --export-kit DIR, run bench.py there, and bring its latency.csv back to
    --import-kit. For an Android phone: run adb.py of the kit on the computer that the phone is connected to.

    A table whose timings do not agree with themselves is not written.

    examples:
      python -m predictors.measure --device-name my-laptop
      python -m predictors.measure --device-name my-laptop --space ofa_mbv3 --resolutions 160,224 --whole 100
      python -m predictors.measure --device-name my-laptop --space proxyless    # for oneshot.search --target
      python -m predictors.measure --space ofa_mbv3 --export-kit kit
      python -m predictors.measure --space ofa_mbv3 --import-kit latency.csv --device-name pi4
      python -m predictors.measure --space ofa_mbv3_w1.2 --import-yaml 160.yaml,224.yaml --device-name note10
      python -m predictors.measure --space ofa_mbv3 --device-name new --no-blocks --whole 10 --like pi4.json
    """

    main_flags: ClassVar[tuple[str, ...]] = (
        "--device-name",
        "--space",
        "--run",
        "--resolutions",
        "--whole",
        "--export-kit",
        "--import-kit",
        "--import-yaml",
        "--like",
        "--threads",
    )

    device_name: str | None = Field(
        None, pattern=r"^[\w.-]+$", description="what to call the device; the table is latency/NAME.json"
    )
    space: str | None = Field(
        None, description="packaged space or YAML file, of a supernet or of chains; none: that of --run"
    )
    run: Path = Field(Path("runs/supernet"), description="run whose space, classes and channels count")
    classes: int = Field(1000, ge=1, description="with --space: outputs of the classifier")
    channels: int = Field(3, ge=1, description="with --space: input channels")
    resolutions: str = Field(
        "",
        description="such as 160,192,224; in between is interpolated; none: all, or 5 of them spread evenly",
    )
    blocks: bool = Field(True, description="time every block")
    whole: int = Field(
        20,
        ge=0,
        description="whole networks to time; 10 correct the sum of blocks and give a margin, 30 refine it",
    )
    like: str = Field(
        "",
        description="without blocks: tables of other devices, separated by commas, to predict this one from",
    )
    threads: int = Field(1, ge=1, description="threads of onnxruntime")
    rounds: int = Field(6, ge=2, description="times that each item is visited")
    seconds: float = Field(0.03, ge=0, description="time for each item in each round")
    clock: Literal["cpu", "wall"] | None = Field(
        None, description="which time counts; none: the CPU time of one thread, else wall time"
    )
    export_kit: Path | None = Field(
        None, description="only write the files and the script to run on the device into this folder"
    )
    import_kit: Path | None = Field(
        None, description="the CSV that the kit's script, or any other runner, wrote"
    )
    import_yaml: str = Field(
        "", description="instead: tables as OFA and ProxylessNAS published them, separated by commas"
    )
    out: Path | None = Field(None, description="file to write; none: latency/NAME.json")

    def execute(self) -> int:
        """Export, measure or import."""
        chains = chain_space_named(self.space)
        if chains is not None:
            return self._measure_chains(chains)
        subject = self._subject()
        if not self.import_yaml:
            print(self._for_what(subject))
        if self.export_kit is not None:
            self._write_kit(subject, self.export_kit)
            print(
                f"kit in {self.export_kit}: copy it to the device, run python bench.py in it, and bring "
                "latency.csv back; for an Android phone run python adb.py in it here"
            )
            say(
                "next: python -m predictors.measure --import-kit latency.csv --device-name NAME, with the "
                "same --space or --run"
            )
            return 0
        out = self._table_file()
        assert self.device_name is not None
        if self.import_yaml:
            paths = tuple(Path(word) for word in self.import_yaml.split(","))
            table = read_published(paths, self.device_name, subject.space, subject.channels)
            _print_quality(table, subject.space)
            return self._save(table, subject.space, out)
        if self.import_kit is not None:
            return self._build(subject, self.device_name, self.import_kit, out)
        folder = out.with_suffix(".kit")
        self._write_kit(subject, folder)
        self._bench(folder)
        status = self._build(subject, self.device_name, folder / "latency.csv", out)
        # The timings of a table that was refused stay: more rounds may be added to them.
        if status == 0:
            shutil.rmtree(folder)
        return status

    def _table_file(self) -> Path:
        """Where the table goes."""
        if self.device_name is None:
            raise UserError(
                "--device-name is missing; say what this device is to be called, such as my-laptop."
            )
        return self.out or Path("latency") / f"{self.device_name}.json"

    def _measure_chains(self, space: ChainSpace) -> int:
        """The same for a space of chains of blocks."""
        if self.import_yaml or self.like or not self.blocks:
            raise UserError(
                f"Space {space.name} is of chains, whose blocks are always timed; leave out --import-yaml, "
                "--like and --no-blocks."
            )
        sizes = [space.resolution]
        if self.resolutions:
            sizes = sorted({self._pixels(word) for word in self.resolutions.split(",")})
        images = [ImageShape(size, self.channels, self.classes) for size in sizes]
        print(
            f"measured for {self.classes} classes and {self.channels} input channels (--classes, --channels)"
        )
        folder = self.export_kit or self._table_file().with_suffix(".kit")
        layers = list(timed_layers(space, images).values())
        structures = len({structure(layer) for layer in layers})
        if self.import_kit is None:
            self._announce(layers, structures, self.whole, sizes)
            with progress("write ONNX files", structures) as advance:
                export_chain_kit(space, images, self.whole, folder, advance)
        if self.export_kit is not None:
            say(
                f"kit in {folder}: run bench.py there; next: python -m predictors.measure --import-kit "
                f"latency.csv --device-name NAME --space {space.name}, with the same --resolutions"
            )
            return 0
        out = self._table_file()
        assert self.device_name is not None
        if self.import_kit is None:
            self._bench(folder)
        timings = self.import_kit or folder / "latency.csv"
        table, noises = build_chain_table(read_timings(timings, self.clock), self.device_name, space, images)
        if self._refused(noises, timings):
            return 1
        error = error_of_sums(table, space, images[0])
        if error is not None:
            print(f"typical error on the {len(table.networks)} whole chains: {error:.1%}")
        write_json(out, table.model_dump(mode="json"))
        if self.import_kit is None:
            shutil.rmtree(folder)
        print(f"written to {out}")
        middle = float(np.median([network.ms for network in table.networks])) if table.networks else 10.0
        flags = f"--space {space.name} --method proxyless --target {middle:.2g}ms"
        say(f"next: python -m oneshot.search {flags} --latency-table {shlex.quote(str(out))}")
        return 0

    def _pixels(self, word: str) -> int:
        if not word.isdigit() or not 8 <= int(word) <= 4096:
            raise UserError(
                f"Resolution {word} is not possible; give sides of 8 to 4096 pixels, such as 224."
            )
        return int(word)

    def _subject(self) -> SpaceToMeasure:
        if self.space is not None:
            return SpaceToMeasure(load_space(self.space), self.classes, self.channels)
        path = self.run / "model.json"
        if not path.exists():
            raise UserError(
                f"'{self.run}' is not a run folder; name a run with --run, or a space with --space."
            )
        model = validate(SupernetModel, read_json(path), str(path))
        return SpaceToMeasure(model.space, len(model.classes), model.channels)

    def _for_what(self, subject: SpaceToMeasure) -> str:
        """For which networks the table will hold: those of a run may have other classes or channels."""
        measured = f"measured for {subject.classes} classes and {subject.channels} input channels"
        if self.space is None:
            return f"{measured}, those of run '{self.run}'"
        return f"{measured} (--classes, --channels); to select subnets of a run, measure with --run RUN"

    def _resolutions(self, space: Space) -> tuple[int, ...]:
        if not self.resolutions:
            places = np.linspace(0, len(space.resolution) - 1, min(RESOLUTIONS, len(space.resolution)))
            return tuple(space.resolution[round(place)] for place in places)
        found = set[int]()
        for word in self.resolutions.split(","):
            if not word.isdigit() or int(word) not in space.resolution:
                known = ", ".join(map(str, space.resolution))
                raise UserError(f"Resolution {word} is not in space '{space.name}'; it has {known}.")
            found.add(int(word))
        return tuple(sorted(found))

    def _write_kit(self, subject: SpaceToMeasure, folder: Path) -> None:
        space, classes, channels = subject
        resolutions = self._resolutions(space)
        # Layers of the measured resolutions only; networks keep the codes of the whole space.
        values = space.model_dump() | {"resolution": resolutions}
        part = Space.model_validate(values)
        layers = distinct_layers(part, classes, channels) if self.blocks else []
        networks = spread_networks(space, resolutions, self.whole)
        if not layers and not len(networks):
            raise UserError("There is nothing to time: --no-blocks needs --whole.")
        structures = len({structure(layer) for layer in layers})
        self._announce(layers, structures, len(networks), resolutions)
        with progress("write ONNX files", structures) as advance:
            export_kit(space, layers, networks, classes, channels, folder, advance)

    def _announce(
        self, layers: Sequence[LayerSpec], structures: int, networks: int, resolutions: Sequence[int]
    ) -> None:
        # One file serves all sizes of a structure, but each size is an item that is timed.
        items = len({layer_name(layer) for layer in layers}) + networks
        seconds = SECONDS_PER_STRUCTURE * structures
        seconds += items * self.rounds * (self.seconds + SECONDS_PER_SESSION)
        print(
            f"{len(layers)} blocks ({structures} ONNX files) at resolutions "
            f"{', '.join(map(str, resolutions))} and {networks} whole networks, "
            f"{counted(self.rounds, 'round')}: about {max(1, round(seconds / 60))} min on an idle machine"
        )

    def _bench(self, folder: Path) -> None:
        out = folder / "latency.csv"
        total = len(read_json(folder / "manifest.json")["items"]) * self.rounds
        # An earlier command that was interrupted may have timed some items, and with more --rounds than now.
        done = min(len(finished(out)), total)
        with progress("time", total, done) as advance:
            bench(folder, out, self.rounds, self.threads, self.seconds, lambda: advance(""))

    def _build(self, subject: SpaceToMeasure, device: str, timings: Path, out: Path) -> int:
        """Build the table from the timings, check how noisy it is, and write it.

        Returns:
            The exit status: 1 if the timings are too noisy.
        """
        space, classes, channels = subject
        table, noises = build_table(read_timings(timings, self.clock), device, space, classes, channels)
        if self._refused(noises, timings):
            return 1
        others = tuple(read_table(Path(word)) for word in self.like.split(",")) if self.like else ()
        if any(other.fingerprint != table.fingerprint for other in others):
            raise UserError("--like names a table of another space; all must be of this one.")
        table = table.model_copy(update={"others": others})
        _print_quality(table, space)
        return self._save(table, space, out)

    def _refused(self, noises: dict[str, Noise], timings: Path) -> bool:
        """Print the noise, and whether the table is too noisy to be written."""
        _print_noises(noises)
        # A wrong table would be believed by every later selection, so none is written.
        for what, noise in noises.items():
            complaint = noise_complaint(noise)
            if complaint:
                print(
                    f"not saved: of the {what}, {complaint}. Stop other programs, keep the device cool and "
                    "on power, and measure with more --rounds or --seconds; timings so far are kept in "
                    f"{timings}."
                )
                return True
        return False

    def _save(self, table: LatencyTable, space: Space, out: Path) -> int:
        write_json(out, table.model_dump(mode="json"))
        print(f"written to {out}")
        limit = format_cost("latency", middle_latency(table, space), digits=2)
        flags = f"--latency {limit} --latency-table {shlex.quote(str(out))}{run_flag(self.run)}"
        say(f"next: python -m predictors.select {flags}")
        return 0


def spread_networks(space: Space, resolutions: tuple[int, ...], count: int) -> Codes:
    """At most `count` different random architectures at these resolutions, spread evenly over their MACs.

    Args:
        space: of the architectures.
        resolutions: image sides that the space has.
        count: how many architectures.

    Returns:
        Encoded architectures (N, F); N is less than `count` where two of them are the same.
    """
    rng = numpy_generator(0, "whole networks")  # the same networks when an interrupted command continues
    pool = sample_codes(space, max(1000, 10 * count), rng)
    choices = [1 + space.resolution.index(r) for r in resolutions]
    pool[:, space.column_index["resolution", 0]] = rng.choice(choices, len(pool))
    order = np.argsort(costs_of(space, pool, classes=1000, channels=3).macs, kind="stable")
    places = np.linspace(0, len(pool) - 1, count).round().astype(int)
    return np.unique(pool[order[places]], axis=0)


def middle_latency(table: LatencyTable, space: Space) -> float:
    """A limit in milliseconds that some architectures keep and others do not: the median latency.

    It is that of the whole networks that were timed; without any, that of random architectures by the model.
    """
    if table.networks:
        return float(np.median([network.ms for network in table.networks]))
    rows = sample_codes(space, 1000, numpy_generator(0, "middle latency"))
    predicted = LatencyModel(table, space).predict(rows)
    # Infinite is what the table does not cover, such as a resolution between two measured ones.
    return float(np.median(predicted[np.isfinite(predicted)]))


def _print_noises(noises: dict[str, Noise]) -> None:
    for what, noise in noises.items():
        if noise.reliability is not None:
            print(
                f"{what}: split-half reliability {noise.reliability:.3f}, typical difference between "
                f"halves {noise.relative:.1%}"
            )


def _print_quality(table: LatencyTable, space: Space) -> None:
    """Print how well each model predicts networks that it did not see, and what limits will compare."""
    shown = Table("model", "error", "Kendall tau")
    for level in get_args(Level):
        quality = cross_validated(table, space, level)
        if quality is not None:
            shown.add_row(level, f"{quality.error:.1%}", f"{quality.tau:.3f}")
    if shown.row_count:
        print(f"predicted from the others, {len(table.networks)} whole networks:")
        show(shown)
    for note in LatencyModel(table, space).notes():
        print(note)


if __name__ == "__main__":
    main(Measure)
