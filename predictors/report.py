"""What selection was worth, on the test images: selected subnets against random ones of the same MACs."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from pydantic import Field, field_validator
from rich.table import Table

from engine.checkpoint import weights_digest
from engine.command.cli import main
from engine.command.interrupt import Stop
from engine.command.progress import progress
from engine.command.start import say
from engine.command.table import show
from engine.compute.distributed import Ranks
from engine.compute.sharing import MEASURED_AGAIN, SharedWork
from engine.config import format_count
from engine.errors import UserError
from engine.plot.canvas import write_png
from engine.run import write_csv, write_json
from engine.runs.writing import atomic
from engine.seed import numpy_generator
from engine.statistics import Counts, Floats, counts_from_text, format_accuracy, overall_accuracy
from ofa.space.arch import Arch
from ofa.space.codes import decode, encode
from ofa.trained import RunCommand, TrainedSupernet
from ofa.tuned import find_tuned
from predictors.accuracy.cross_validation import CrossValidated, predict_pairs
from predictors.accuracy.features import features
from predictors.accuracy.pairs import Pair, check_pairs, read_pairs
from predictors.latency.model import load_latency
from predictors.reporting.alone import (
    AloneNetwork,
    Worth,
    compare_with_alone,
    find_alone,
    print_worth,
    read_alone,
    worth_as_json,
)
from predictors.reporting.classes import class_pictures
from predictors.reporting.comparison import Comparison, any_tuned
from predictors.reporting.exported import read_exported
from predictors.reporting.figures import pictures
from predictors.reporting.findings import (
    Findings,
    Hits,
    Kind,
    SelectedSubnet,
    TestedSubnet,
    compare_subnets,
    extremes,
    known_latencies,
    read_known_subnets,
    read_selected_subnets,
)
from predictors.reporting.page import headlines, render_page
from predictors.reporting.rivals import random_rivals
from predictors.reporting.tasks import confusion_task, hits_task, measure_on_test, read_hits
from predictors.search.constraints import ArchCostFn


class ToTest(NamedTuple):
    """A subnet to be measured on test images. latency_ms: the one in its file, if the file has one."""

    budget: str
    kind: Kind
    arch: Arch
    latency_ms: float | None = None


class Report(RunCommand):
    """Compare every selected subnet on the test images with random ones of the same MACs.

    The same MACs: within 5%; where the space has fewer than 5 such subnets, nothing is compared. Writes
    report/report.html, a page that needs nothing else: a sentence for each budget, the chosen subnets between
    the smallest and the largest, exported files with size and time, accuracy class by class, accuracy against
    MACs and latency, how far the predictor can be trusted, and the architectures; and the same as PNG, CSV
    and JSON beside it. Prints the comparison and the sentences. Besides ofa.evaluate --split test, this is
    the only command that looks at the test images.

    Processes that torchrun starts, one for each GPU, share the subnets.

    Finished runs in the folder beside the run that trained a chosen architecture alone, on the same images,
    are compared with it, as those of --alone are.

    examples:
      python -m predictors.report
      python -m predictors.report --run runs/photos --random 50
      python -m predictors.report --latency-table my-laptop.json
      python -m predictors.report --alone runs/alone-100k,runs/alone-1M
    """

    many_processes: ClassVar[bool] = True

    random: int = Field(20, ge=1, description="random subnets for each budget")
    latency_table: Path | None = Field(
        None, description="file of predictors.measure; none: latency only where predictors.select wrote it"
    )
    alone: tuple[Path, ...] = Field(
        (),
        description="more runs of ofa.train --arch, separated by commas, to compare selected subnets with",
    )
    seed: int = Field(
        0, ge=0, description="seed of the random subnets, and of the folds in which the predictor is judged"
    )

    @field_validator("alone", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return value.split(",") if isinstance(value, str) else value

    def execute(self) -> int:
        """Measure, then write everything, together with the other processes if there are several."""
        with self.processes(MEASURED_AGAIN) as (ranks, device):
            return self._report(self.open_supernet(ranks, device), ranks)

    def _report(self, trained: TrainedSupernet, ranks: Ranks) -> int:
        # Nobody has to be told of a signal: until all is measured, nothing is written.
        with SharedWork(ranks, partial(measure_on_test, trained), Stop(), MEASURED_AGAIN) as work:
            if not ranks.first:
                work.help()
                return 0
            findings, alone = self._findings(trained, work)
        self._write(findings, compare_with_alone(alone, trained))
        return 0

    def _findings(self, trained: TrainedSupernet, work: SharedWork) -> tuple[Findings, list[AloneNetwork]]:
        """All that is measured here, and the networks that were trained alone."""
        space, model = trained.space, trained.model
        latency = None
        if self.latency_table is not None:
            latency = load_latency(self.latency_table, space, len(model.classes), model.channels).predict
        # Everything is read before anything is measured: a damaged file costs no time.
        selected = read_selected_subnets(self.run, space, latency)
        known = read_known_subnets(self.run, space, selected, latency)
        pairs = read_pairs(self.run)
        check_pairs(pairs, trained)
        digest = weights_digest(self.run)
        exported = read_exported(self.run, space, {s.name: s.arch for s in selected}, digest)
        alone = self._alone(trained, selected)
        judged = self._judge(trained, pairs)
        tested, hits = self._test(trained, selected, latency, work)
        confusions, tuned = self._test_by_class(selected, work)
        findings = Findings(
            run=self.run.resolve().name,
            space=space,
            classes=model.classes,
            images={"val": trained.data.count("val"), "test": trained.data.count("test")},
            selected=selected,
            known=known,
            tested=tested,
            comparisons=compare_subnets(space, selected, known, tested, hits, tuned, self.random),
            exported=exported,
            judged=judged,
            pairs=len(pairs),
            confusions=confusions,
            weights_sha256=digest,
        )
        return findings, alone

    def _alone(self, trained: TrainedSupernet, selected: Sequence[SelectedSubnet]) -> list[AloneNetwork]:
        """The networks trained alone: those of --alone, and those beside the run."""
        named = read_alone(self.alone, trained, selected)
        found = []
        for path in find_alone(trained, selected):
            if path in [other.resolve() for other in self.alone]:
                continue
            # Nobody named this run, so damaged weights are no reason to stop.
            try:
                found += read_alone([path], trained, selected)
                print(f"'{path}' trained a chosen architecture alone: the report compares the two.")
            except UserError as error:
                say(f"'{path}' is left out: {error}")
        return named + found

    def _judge(self, trained: TrainedSupernet, pairs: Sequence[Pair]) -> CrossValidated | None:
        """The collected pairs, each predicted from the others; None if they are too few."""
        if not pairs:
            return None
        codes = np.stack([encode(trained.space, pair.arch) for pair in pairs])
        y = np.array([pair.val_accuracy for pair in pairs])
        return predict_pairs(features(trained.space, codes), y, trained.macs(codes), self.seed)

    def _test(
        self,
        trained: TrainedSupernet,
        selected: Sequence[SelectedSubnet],
        latency: ArchCostFn | None,
        work: SharedWork,
    ) -> tuple[list[TestedSubnet], Hits]:
        """The smallest and the largest subnet, then each selected one with the random ones of its size.

        Returns:
            All of them; and which test images the ends and the selected ones classified correctly.
        """
        todo = [ToTest("", kind, arch) for kind, arch in extremes(trained.space).items()]
        for subnet in selected:
            todo.append(ToTest(subnet.name, "selected", subnet.arch, subnet.record.latency_ms))
            row = encode(trained.space, subnet.arch)
            rng = numpy_generator(self.seed, "same macs", trained.cost(subnet.arch)[0])
            for other in random_rivals(trained.space, trained.macs, row, self.random, rng):
                todo.append(ToTest(subnet.name, "random", decode(trained.space, other)))
        tasks = [hits_task(subnet.arch) for subnet in todo]
        hits_of: list[Floats] = [np.empty(0)] * len(todo)
        with progress("measure on test images", len(todo)) as advance:
            for i, measured in work.results(tasks):
                hits_of[i] = read_hits(measured)
                advance(f"{todo[i].kind} {hits_of[i].mean():.2%}")
        tested: list[TestedSubnet] = []
        hits: Hits = {}
        for (budget, kind, arch, ms), hits_N in zip(todo, hits_of, strict=True):
            if kind != "random":
                hits[kind, budget] = hits_N
            if latency is not None:
                # The table of this command counts more than the one that selection had.
                (ms,) = known_latencies(latency, encode(trained.space, arch)[None])
            macs, params = trained.cost(arch)
            tested.append(TestedSubnet(budget, kind, macs, params, float(hits_N.mean()), ms))
        return tested, hits

    def _test_by_class(
        self, selected: Sequence[SelectedSubnet], work: SharedWork
    ) -> tuple[dict[str, Counts], dict[str, float]]:
        """What the selected subnets take test images for, tuned ones tuned; and the accuracy of those."""
        tuned, tasks = set(), []
        for chosen in selected:
            if find_tuned(self.run, chosen.name, chosen.arch) is not None:
                tuned.add(chosen.name)
            tasks.append(confusion_task(chosen.name, chosen.arch, chosen.name in tuned))
        measured = dict(work.results(tasks))
        confusions, tuned_accuracy = {}, {}
        for i, chosen in enumerate(selected):
            confusions[chosen.name] = counts_from_text(measured[i])
            if chosen.name in tuned:
                tuned_accuracy[chosen.name] = overall_accuracy(confusions[chosen.name])
        return confusions, tuned_accuracy

    def _write(self, findings: Findings, worth: Worth | None) -> None:
        folder = self.run / "report"
        drawn = pictures(findings) | class_pictures(findings.confusions, findings.classes)
        for name, picture in drawn.items():
            write_png(picture.drawing, folder / f"{name}.png")
            write_csv(folder / f"{name}.csv", _columns_in_use(picture.rows), picture.rows)
        rows = [comparison._asdict() for comparison in findings.comparisons]
        sentences = headlines(findings, worth)
        weights = {"weights_sha256": findings.weights_sha256}
        exported = [file._asdict() for file in findings.exported]
        report = {"images": findings.images, "headlines": sentences, "subnets": rows, "exported": exported}
        write_json(folder / "report.json", weights | report)
        write_csv(folder / "report.csv", _columns_in_use(rows), rows)
        # Another run beside this one may have been compared before, and be gone now.
        (folder / "alone.json").unlink(missing_ok=True)
        if worth is not None:
            write_json(folder / "alone.json", worth_as_json(worth) | weights)
        with atomic(folder / "report.html") as temporary:
            temporary.write_text(render_page(findings, drawn, worth), encoding="utf-8")
        _print_comparisons(findings.comparisons, findings.images)
        if worth is not None:
            print_worth(worth)
        for sentence in sentences:
            say(sentence)
        print(
            f"written to {folder}: report.html, report.json, report.csv, and {', '.join(drawn)} as .png and "
            ".csv"
        )


def _columns_in_use(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The columns that have a value in some row; latencies have none where no device was named."""
    return [name for name in rows[0] if any(row[name] is not None for row in rows)]


def _print_comparisons(comparisons: Sequence[Comparison], images: Mapping[str, int]) -> None:
    table = Table("budget", "MACs", "validation", "test", "test, tuned", "random", "beats")
    for c in comparisons:
        median, beats = "-", "-"
        if c.random_median is not None:
            median, beats = f"{c.random_median:.2%}", f"{c.random_beaten} of {c.random_count}"
        table.add_row(
            c.budget,
            format_count(c.macs),
            _accuracy_cell(c.val_accuracy, images["val"]),
            _accuracy_cell(c.test_accuracy, images["test"]),
            _accuracy_cell(c.tuned_accuracy, images["test"]),
            median,
            beats,
        )
    show(table)
    if any_tuned(comparisons):
        print("only 'test, tuned' is tuned: compare the other accuracies with each other, not with it")


def _accuracy_cell(accuracy: float | None, images: int) -> str:
    return "-" if accuracy is None else format_accuracy(accuracy, images)


if __name__ == "__main__":
    main(Report)
