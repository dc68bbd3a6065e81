"""What selection was worth: chosen subnets against random ones of the same MACs on the test images, as a
page, pictures and tables."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from rich.console import Console
from rich.table import Table

from engine.command.cli import main
from engine.command.progress import progress
from engine.config import format_count
from engine.plot.canvas import write_png
from engine.run import atomic, write_json
from engine.seed import numpy_generator
from ofa.space.arch import Arch
from ofa.space.codes import Codes, decode, encode, sample_codes
from ofa.trained import RunCommand, TrainedSupernet
from predictors.accuracy.cross_validation import HeldOut, predict_held_out
from predictors.accuracy.features import features
from predictors.accuracy.pairs import read_pairs
from predictors.reporting.figures import pictures
from predictors.reporting.findings import (
    Chosen,
    Comparison,
    Findings,
    Kind,
    Tested,
    compare,
    extremes,
    read_chosen,
    read_known,
)
from predictors.reporting.page import render
from predictors.search.constraints import Costs
from predictors.search.costs import cost_functions

POOL, SAME_MACS = 200_000, 0.05


class Report(RunCommand):
    """Compare every selected subnet with random ones of the same MACs (within 5%, or the nearest) on the test
    images.

    Writes report/report.html, a page that needs nothing else: accuracy against MACs and latency, the chosen
    subnets, how far the predictor can be trusted, and the architectures; and the same as PNG, CSV and JSON
    beside it. Prints the comparison. Besides ofa.evaluate --split test, this is the only command that looks
    at the test images.

    examples:
      python -m predictors.report
      python -m predictors.report --run runs/photos --random 50
      python -m predictors.report --latency-table my-laptop.json
    """

    random: int = Field(20, ge=1, description="random subnets for each budget")
    latency_table: Path | None = Field(
        None,
        description=(
            "latency of a device, a file that predictors.measure wrote; none: shown where predictors.select "
            "wrote it"
        ),
    )
    seed: int = Field(
        0, ge=0, description="of the random subnets, and of the folds in which the predictor is judged"
    )

    def execute(self) -> int:
        """Measure, then write everything."""
        trained = self.open_supernet()
        costs = cost_functions(
            trained.space, len(trained.model.classes), trained.model.channels, self.latency_table
        )
        chosen = read_chosen(self.run, trained.space, costs.get("latency"))
        known = read_known(self.run, trained.space, chosen, costs.get("latency"))
        judged = self._judge(trained)
        tested = self._test(trained, chosen, costs.get("latency"))
        images = {"val": trained.data.count("val"), "test": trained.data.count("test")}
        comparisons, pairs = compare(chosen, tested), len(read_pairs(self.run))
        name = self.run.resolve().name
        self._write(
            Findings(
                name,
                trained.space,
                trained.model.classes,
                images,
                chosen,
                known,
                tested,
                comparisons,
                judged,
                pairs,
            )
        )
        return 0

    def _judge(self, trained: TrainedSupernet) -> HeldOut | None:
        """How well the collected pairs predict each other."""
        pairs = read_pairs(self.run)
        if not pairs:
            return None
        codes = np.stack([encode(trained.space, pair.arch) for pair in pairs])
        y = np.array([pair.val_accuracy for pair in pairs])
        return predict_held_out(features(trained.space, codes), y, trained.macs(codes), self.seed)

    def _test(
        self, trained: TrainedSupernet, chosen: Sequence[Chosen], latency: Costs | None
    ) -> list[Tested]:
        """The smallest and the largest subnet, then each chosen one with the random ones of its size."""
        todo: list[tuple[str, Kind, Arch, float | None]] = [
            ("", kind, arch, None) for kind, arch in extremes(trained.space).items()
        ]
        for name, choice, arch, _ in chosen:
            todo.append((name, "selected", arch, choice.latency_ms))
            todo += [
                (name, "random", decode(trained.space, row), None)
                for row in self._random_of_same_macs(trained, arch)
            ]
        tested = []
        with progress("measure on test images", len(todo)) as advance:
            for name, kind, arch, time in todo:
                accuracy = trained.accuracy(arch, "test")
                time = time if latency is None else float(latency(encode(trained.space, arch)[None])[0])
                tested.append(Tested(name, kind, *trained.cost(arch), accuracy, time))
                advance(f"{kind} {accuracy:.2%}")
        return tested

    def _random_of_same_macs(self, trained: TrainedSupernet, arch: Arch) -> Codes:
        """`random` different uniform samples within 5% of the MACs of `arch`, without itself; where there are
        too few, the nearest."""
        wanted = trained.cost(arch)[0]
        rng = numpy_generator(self.seed, "same macs", wanted)
        pool = rng.permutation(np.unique(sample_codes(trained.space, POOL, rng), axis=0))
        pool = pool[(pool != encode(trained.space, arch)).any(1)]
        macs = trained.macs(pool)
        distance = np.maximum(np.abs(macs / wanted - 1), SAME_MACS)  # all within 5% are equally near
        return pool[np.argsort(distance, kind="stable")][: self.random]

    def _write(self, found: Findings) -> None:
        folder = self.run / "report"
        drawn = pictures(found)
        for name, picture in drawn.items():
            write_png(picture.drawing, folder / f"{name}.png")
            write_csv(folder / f"{name}.csv", picture.rows)
        write_json(folder / "report.json", [comparison._asdict() for comparison in found.comparisons])
        with atomic(folder / "report.html") as temporary:
            temporary.write_text(render(found, drawn), encoding="utf-8")
        Console().print(_table(found.comparisons))
        print(f"written to {folder}: report.html, report.json, and {', '.join(drawn)} as .png and .csv")


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Rows of a table, without the columns that are empty everywhere."""
    names = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    with atomic(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def _table(comparisons: Sequence[Comparison]) -> Table:
    table = Table("budget", "MACs", "validation", "test", "random", "beats", "within")
    for c in comparisons:
        numbers = (
            f"{c.val_accuracy:.2%}",
            f"{c.test_accuracy:.2%}",
            f"{c.random_median:.2%}",
            f"{c.random_beaten} of {c.random_count}",
        )
        table.add_row(c.budget, format_count(c.macs), *numbers, f"{c.random_macs_apart:.0%}")
    return table


if __name__ == "__main__":
    main(Report)
