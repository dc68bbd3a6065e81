"""Measure how long architectures take on a device, and keep it as a latency table for python -m
predictors.select."""

import shutil
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field
from rich.console import Console
from rich.table import Table

from engine.command.cli import Command, main
from engine.command.progress import progress
from engine.config import validate
from engine.errors import UserError
from engine.onnx_timing import bench, finished
from engine.run import read_json, write_json
from engine.seed import numpy_generator
from ofa.cost import costs_of
from ofa.layers import LayerSpec
from ofa.space.codes import Codes, sample_codes
from ofa.space.space import Space, load_space
from ofa.trained import SupernetModel
from predictors.latency.kit import distinct_layers, export_kit, layer_name, structure
from predictors.latency.model import LatencyTable, Level, cross_validated, read_table
from predictors.latency.timings import build_table, complaint, read_published, read_timings

RESOLUTIONS = 5
SECONDS_PER_STRUCTURE, SECONDS_PER_SESSION = 1.0, 0.02


class Measure(Command):
    """Time every block of a space, and some whole networks, in onnxruntime; write them as a latency table.

    Weights do not matter, so a space is enough (--space); a run (--run) also knows its classes and channels.
    On this machine: leave out --export-kit and --import-kit. An interrupted command continues when it is
    given again. For another device: --export-kit DIR, run bench.py there, and bring its latency.csv back to
    --import-kit.

    A table whose timings do not agree with themselves is not written.

    examples:
      python -m predictors.measure --device-name my-laptop
      python -m predictors.measure --device-name my-laptop --space ofa_mbv3 --resolutions 160,192,224 --whole
      100 python -m predictors.measure --space ofa_mbv3 --export-kit kit python -m predictors.measure --space
      ofa_mbv3 --import-kit latency.csv --device-name pi4 python -m predictors.measure --space ofa_mbv3_w1.2
      --import-yaml 160.yaml,192.yaml,224.yaml --device-name note10 python -m predictors.measure --space
      ofa_mbv3 --device-name new --no-blocks --whole 10 --like pi4.json,note10.json
    """

    device_name: str | None = Field(
        None, pattern=r"^[\w.-]+$", description="what to call the device; the table is latency/NAME.json"
    )
    space: str | None = Field(None, description="packaged space or YAML file; none: that of --run")
    run: Path = Field(Path("runs/supernet"), description="run whose space, classes and channels count")
    classes: int = Field(1000, ge=1, description="with --space: outputs of the classifier")
    channels: int = Field(3, ge=1, description="with --space: input channels")
    resolutions: str = Field(
        "",
        description="such as 160,192,224; in between is interpolated; none: all, or 5 of them spread evenly",
    )
    blocks: bool = Field(True, description="time every block")
    whole: int = Field(
        12, ge=0, description="whole networks to time; 10 correct the sum of blocks, 30 and more refine it"
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
        space, classes, channels = self._space()
        if self.export_kit is not None:
            self._write_kit(space, classes, channels, self.export_kit)
            print(
                f"kit in {self.export_kit}: copy it to the device, run python bench.py in it, and bring "
                "latency.csv back"
            )
            print(
                "next: python -m predictors.measure --import-kit latency.csv --device-name NAME, with the "
                "same --space or --run"
            )
            return 0
        if self.device_name is None:
            raise UserError(
                "--device-name is missing; say what this device is to be called, such as my-laptop."
            )
        out = self.out or Path("latency") / f"{self.device_name}.json"
        if self.import_yaml:
            paths = tuple(Path(word) for word in self.import_yaml.split(","))
            write_json(out, read_published(paths, self.device_name, space, channels).model_dump(mode="json"))
            return _finish(out)
        if self.import_kit is not None:
            return self._keep(self.import_kit, out, space, classes, channels)
        folder = out.with_suffix(".kit")
        self._write_kit(space, classes, channels, folder)
        self._bench(folder)
        status = self._keep(folder / "latency.csv", out, space, classes, channels)
        if status == 0:
            shutil.rmtree(folder)
        return status

    def _space(self) -> tuple[Space, int, int]:
        if self.space is not None:
            return load_space(self.space), self.classes, self.channels
        if not (self.run / "model.json").exists():
            raise UserError(
                f"'{self.run}' is not a run folder; name a run with --run, or a space with --space."
            )
        model = validate(SupernetModel, read_json(self.run / "model.json"), str(self.run / "model.json"))
        return model.space, len(model.classes), model.channels

    def _resolutions(self, space: Space) -> tuple[int, ...]:
        if not self.resolutions:
            places = np.linspace(0, len(space.resolution) - 1, min(RESOLUTIONS, len(space.resolution)))
            return tuple(space.resolution[round(place)] for place in places)
        words = self.resolutions.split(",")
        strange = [word for word in words if not word.isdigit() or int(word) not in space.resolution]
        if strange:
            raise UserError(
                f"Resolution {strange[0]} is not in space '{space.name}'; it has "
                f"{', '.join(map(str, space.resolution))}."
            )
        return tuple(sorted({int(word) for word in words}))

    def _write_kit(self, space: Space, classes: int, channels: int, folder: Path) -> None:
        resolutions = self._resolutions(space)
        part = Space.model_validate(space.model_dump() | {"resolution": resolutions})
        pieces = distinct_layers(part, classes, channels) if self.blocks else []
        nets = spread_networks(space, resolutions, self.whole)
        if not pieces and not len(nets):
            raise UserError("There is nothing to time: --no-blocks needs --whole.")
        self._announce(pieces, len(nets), resolutions)
        total = len({structure(p) for p in pieces})
        with progress("write ONNX files", total) as advance:
            export_kit(space, pieces, nets, classes, channels, folder, advance)

    def _announce(self, pieces: list[LayerSpec], nets: int, resolutions: tuple[int, ...]) -> None:
        structures, items = len({structure(p) for p in pieces}), len({layer_name(p) for p in pieces}) + nets
        seconds = SECONDS_PER_STRUCTURE * structures + items * self.rounds * (
            self.seconds + SECONDS_PER_SESSION
        )
        print(
            f"{len(pieces)} blocks ({structures} ONNX files) at resolutions "
            f"{', '.join(map(str, resolutions))} and {nets} whole networks, "
            f"{self.rounds} rounds: about {max(1, round(seconds / 60))} minutes on an idle machine"
        )

    def _bench(self, folder: Path) -> None:
        out, items = folder / "latency.csv", len(read_json(folder / "manifest.json")["items"])
        total = items * self.rounds
        with progress("time", total, min(len(finished(out)), total)) as advance:
            bench(folder, out, self.rounds, self.threads, self.seconds, lambda: advance(""))

    def _keep(self, path: Path, out: Path, space: Space, classes: int, channels: int) -> int:
        """Build, judge and write the table. Returns the exit status: 1 if it is too noisy."""
        assert self.device_name is not None
        table, noises = build_table(
            read_timings(path, self.clock), self.device_name, space, classes, channels
        )
        for what, noise in noises.items():
            if noise.reliability is not None:
                print(
                    f"{what}: split-half reliability {noise.reliability:.3f}, typical difference between "
                    f"halves {noise.relative:.1%}"
                )
        for what, noise in noises.items():
            if why := complaint(noise):
                print(
                    f"not saved: of the {what}, {why}. Stop other programs, keep the device cool and on "
                    "power, and measure with more "
                    f"--rounds or --seconds; timings so far are kept in {path}."
                )
                return 1
        others = tuple(read_table(Path(word)) for word in self.like.split(",")) if self.like else ()
        if any(other.fingerprint != table.fingerprint for other in others):
            raise UserError("--like names a table of another space; all must be of this one.")
        table = table.model_copy(update={"others": others})
        _show_quality(table, space)
        write_json(out, table.model_dump(mode="json"))
        return _finish(out)


def spread_networks(space: Space, resolutions: tuple[int, ...], count: int) -> Codes:
    """`count` random architectures at these resolutions, spread evenly over their MACs."""
    rng = numpy_generator(0, "whole networks")
    pool = sample_codes(space, max(1000, 10 * count), rng)
    choices = [1 + space.resolution.index(r) for r in resolutions]
    pool[:, space.column_index["resolution", 0]] = rng.choice(choices, len(pool))
    order = np.argsort(costs_of(space, pool, classes=1000, channels=3).macs, kind="stable")
    places = np.linspace(0, len(pool) - 1, count).round().astype(int)
    return np.unique(pool[order[places]], axis=0)


def _show_quality(table: LatencyTable, space: Space) -> None:
    """What each model predicts of networks that it did not see."""
    shown = Table("model", "error", "Kendall tau")
    levels: tuple[Level, ...] = ("base", "affine", "residual")
    for level in levels:
        quality = cross_validated(table, space, level)
        if quality is not None:
            shown.add_row(level, f"{quality.error:.1%}", f"{quality.tau:.3f}")
    if shown.row_count:
        print(f"predicted from the others, {len(table.networks)} whole networks:")
        Console().print(shown)


def _finish(out: Path) -> int:
    print(f"written to {out}\nnext: python -m predictors.select --latency 10ms --latency-table {out}")
    return 0


if __name__ == "__main__":
    main(Measure)
