"""What selection was worth, on the test images: selected subnets against random ones of the same MACs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import Field, field_validator
from rich.table import Table

from engine.checkpoint import weights_digest
from engine.command.cli import main
from engine.command.progress import progress
from engine.command.table import plain_console
from engine.config import format_count
from engine.plot.canvas import write_png
from engine.run import write_csv, write_json
from engine.runs.writing import atomic
from engine.seed import numpy_generator
from engine.statistics import Counts, format_accuracy, overall_accuracy
from ofa.space.arch import Arch
from ofa.space.codes import Codes, decode, encode, sample_codes
from ofa.trained import RunCommand, TrainedSupernet
from ofa.tuned import find_tuned, tuned_or_taken
from predictors.accuracy.cross_validation import CrossValidated, predict_pairs
from predictors.accuracy.features import features
from predictors.accuracy.pairs import Pair, check_pairs, read_pairs
from predictors.latency.model import load_latency
from predictors.reporting.alone import (
    Worth,
    compare_with_alone,
    print_worth,
    read_alone,
    worth_as_json,
)
from predictors.reporting.classes import class_pictures
from predictors.reporting.figures import pictures
from predictors.reporting.findings import (
    Comparison,
    Findings,
    Kind,
    SelectedSubnet,
    TestedSubnet,
    compare_with_random,
    extremes,
    known_latencies,
    read_known_subnets,
    read_selected_subnets,
)
from predictors.reporting.page import render_page
from predictors.search.constraints import ArchCostFn

POOL = 200_000  # random architectures from which those of the same MACs are taken
SAME_MACS = 0.05  # a difference of so much, as a share, counts as the same MACs


class ToTest(NamedTuple):
    """A subnet to be measured on test images. latency_ms: the one in its file, if the file has one."""

    budget: str
    kind: Kind
    arch: Arch
    latency_ms: float | None = None


class Report(RunCommand):
    """Compare every selected subnet on the test images with random ones of the same MACs.

    The same MACs: within 5%, or the nearest ones. Writes report/report.html, a page that needs nothing else:
    accuracy against MACs and latency, the chosen subnets, how far the predictor can be trusted, and the
    architectures; and the same as PNG, CSV and JSON beside it. Prints the comparison. Besides ofa.evaluate
    --split test, this is the only command that looks at the test images.

    examples:
      python -m predictors.report
      python -m predictors.report --run runs/photos --random 50
      python -m predictors.report --latency-table my-laptop.json
      python -m predictors.report --alone runs/alone-100k,runs/alone-1M
    """

    random: int = Field(20, ge=1, description="random subnets for each budget")
    latency_table: Path | None = Field(
        None, description="file of predictors.measure; none: latency only where predictors.select wrote it"
    )
    alone: tuple[Path, ...] = Field(
        (),
        description="runs of ofa.train --arch, separated by commas, shown beside the same selected subnets",
    )
    seed: int = Field(
        0, ge=0, description="seed of the random subnets, and of the folds in which the predictor is judged"
    )

    @field_validator("alone", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return value.split(",") if isinstance(value, str) else value

    def execute(self) -> int:
        """Measure, then write everything."""
        with self.write_lock():
            return self._report()

    def _report(self) -> int:
        trained = self.open_supernet()
        space, model = trained.space, trained.model
        latency = None
        if self.latency_table is not None:
            latency = load_latency(self.latency_table, space, len(model.classes), model.channels).predict
        # Everything is read before anything is measured: a damaged file costs no time.
        selected = read_selected_subnets(self.run, space, latency)
        known = read_known_subnets(self.run, space, selected, latency)
        pairs = read_pairs(self.run)
        check_pairs(pairs, trained)
        alone = read_alone(self.alone, trained, selected)
        judged = self._judge(trained, pairs)
        tested = self._test(trained, selected, latency)
        confusions, tuned = self._test_by_class(trained, selected)
        comparisons = compare_with_random(selected, tested)
        findings = Findings(
            run=self.run.resolve().name,
            space=space,
            classes=model.classes,
            images={"val": trained.data.count("val"), "test": trained.data.count("test")},
            selected=selected,
            known=known,
            tested=tested,
            comparisons=[c._replace(tuned_accuracy=tuned.get(c.budget)) for c in comparisons],
            judged=judged,
            pairs=len(pairs),
            confusions=confusions,
            weights_sha256=weights_digest(self.run),
        )
        self._write(findings, compare_with_alone(alone, trained))
        return 0

    def _judge(self, trained: TrainedSupernet, pairs: Sequence[Pair]) -> CrossValidated | None:
        """The collected pairs, each predicted from the others; None if they are too few."""
        if not pairs:
            return None
        codes = np.stack([encode(trained.space, pair.arch) for pair in pairs])
        y = np.array([pair.val_accuracy for pair in pairs])
        return predict_pairs(features(trained.space, codes), y, trained.macs(codes), self.seed)

    def _test(
        self, trained: TrainedSupernet, selected: Sequence[SelectedSubnet], latency: ArchCostFn | None
    ) -> list[TestedSubnet]:
        """The smallest and the largest subnet, then each selected one with the random ones of its size."""
        todo = [ToTest("", kind, arch) for kind, arch in extremes(trained.space).items()]
        for subnet in selected:
            todo.append(ToTest(subnet.name, "selected", subnet.arch, subnet.record.latency_ms))
            for row in self._random_of_same_macs(trained, subnet.arch):
                todo.append(ToTest(subnet.name, "random", decode(trained.space, row)))
        tested = []
        with progress("measure on test images", len(todo)) as advance:
            for budget, kind, arch, ms in todo:
                accuracy = trained.accuracy(arch, "test")
                if latency is not None:
                    # The table of this command counts more than the one that selection had.
                    (ms,) = known_latencies(latency, encode(trained.space, arch)[None])
                macs, params = trained.cost(arch)
                tested.append(TestedSubnet(budget, kind, macs, params, accuracy, ms))
                advance(f"{kind} {accuracy:.2%}")
        return tested

    def _test_by_class(
        self, trained: TrainedSupernet, selected: Sequence[SelectedSubnet]
    ) -> tuple[dict[str, Counts], dict[str, float]]:
        """What the selected subnets take test images for, tuned ones tuned; and the accuracy of those."""
        confusions, tuned_accuracy = {}, {}
        for chosen in selected:
            tuned = find_tuned(self.run, chosen.name, chosen.arch)
            subnet = tuned_or_taken(trained, chosen.arch, tuned)
            confusions[chosen.name] = trained.confusion(subnet, "test")
            if tuned is not None:
                tuned_accuracy[chosen.name] = overall_accuracy(confusions[chosen.name])
        return confusions, tuned_accuracy

    def _random_of_same_macs(self, trained: TrainedSupernet, arch: Arch) -> Codes:
        """Different uniform samples within 5% of the MACs of `arch`, without itself.

        There are `self.random` of them: where too few are within 5%, the nearest others.
        """
        wanted = trained.cost(arch)[0]
        rng = numpy_generator(self.seed, "same macs", wanted)
        # Shuffled again, since np.unique sorts: otherwise the first of the pool would all be small.
        pool = rng.permutation(np.unique(sample_codes(trained.space, POOL, rng), axis=0))
        pool = pool[(pool != encode(trained.space, arch)).any(1)]
        macs = trained.macs(pool)
        # All within 5% are equally near, so the stable sort leaves them in random order.
        distance = np.maximum(np.abs(macs / wanted - 1), SAME_MACS)
        return pool[np.argsort(distance, kind="stable")][: self.random]

    def _write(self, findings: Findings, worth: Worth | None) -> None:
        folder = self.run / "report"
        drawn = pictures(findings) | class_pictures(findings.confusions, findings.classes)
        for name, picture in drawn.items():
            write_png(picture.drawing, folder / f"{name}.png")
            write_csv(folder / f"{name}.csv", _columns_in_use(picture.rows), picture.rows)
        comparisons = findings.comparisons
        weights = {"weights_sha256": findings.weights_sha256}
        write_json(folder / "report.json", [comparison._asdict() | weights for comparison in comparisons])
        if worth is not None:
            write_json(folder / "alone.json", worth_as_json(worth) | weights)
        with atomic(folder / "report.html") as temporary:
            temporary.write_text(render_page(findings, drawn, worth), encoding="utf-8")
        _print_comparisons(comparisons, findings.images)
        if worth is not None:
            print_worth(worth)
        print(f"written to {folder}: report.html, report.json, and {', '.join(drawn)} as .png and .csv")


def _columns_in_use(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The columns that have a value in some row; latencies have none where no device was named."""
    return [name for name in rows[0] if any(row[name] is not None for row in rows)]


def _print_comparisons(comparisons: Sequence[Comparison], images: Mapping[str, int]) -> None:
    table = Table("budget", "MACs", "validation", "test", "tuned", "random", "beats", "within")
    for c in comparisons:
        table.add_row(
            c.budget,
            format_count(c.macs),
            format_accuracy(c.val_accuracy, images["val"]),
            format_accuracy(c.test_accuracy, images["test"]),
            "-" if c.tuned_accuracy is None else format_accuracy(c.tuned_accuracy, images["test"]),
            f"{c.random_median:.2%}",
            f"{c.random_beaten} of {c.random_count}",
            f"{c.random_macs_apart:.0%}",
        )
    plain_console().print(table)


if __name__ == "__main__":
    main(Report)
