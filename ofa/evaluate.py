"""Measure the accuracy of given architectures of a trained run, each with recalibrated BatchNorm."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

from pydantic import Field
from rich.table import Table

from engine.command.cli import main
from engine.command.interrupt import Stop
from engine.command.progress import progress
from engine.command.table import show
from engine.compute.distributed import Ranks
from engine.compute.sharing import MEASURED_AGAIN, SharedWork
from engine.config import format_count
from engine.data.dataset import Split
from engine.plot.confusion import write_confusion
from engine.statistics import (
    Counts,
    balanced_accuracy,
    class_rows,
    counts_from_text,
    format_accuracy,
    overall_accuracy,
    worst_classes,
)
from ofa.space.arch import Arch
from ofa.trained import RunCommand, TrainedSupernet
from ofa.tuned import SubnetToMeasure, find_subnet, find_tuned, name_of


class Evaluate(RunCommand):
    """Measure architectures of a trained supernet, or the network of a run that trained one alone.

    Processes that torchrun starts, one for each GPU, share the architectures.

    examples:
      python -m ofa.evaluate
      python -m ofa.evaluate --arch 300k,1M,largest --split test     budgets of predictors.select
      python -m ofa.evaluate --arch largest --split test --per-class
      python -m ofa.evaluate --run runs/attentive_nas --arch attentive_nas_a0,attentive_nas_a6
    """

    many_processes: ClassVar[bool] = True

    arch: str = Field(
        "smallest,largest",
        description=(
            "smallest, largest, budgets as named in the run's selected/ folder, published names or JSON "
            "files, separated by commas; or JSON; ignored if the run trained one architecture alone"
        ),
    )
    untuned: bool = Field(
        False, description="take the supernet's weights even of subnets that ofa.tune tuned"
    )
    split: Split = Field("val", description="val, or test for a final report")
    per_class: bool = Field(
        False,
        description=(
            "list the accuracy of every class, and write which class is taken for which to confusion/ in the "
            "run folder"
        ),
    )

    def execute(self) -> int:
        """Measure each and print a table, together with the other processes if there are several."""
        with self.processes(MEASURED_AGAIN, writes=self.per_class) as (ranks, device):
            return self._evaluate(self.open(ranks, device), ranks)

    def _evaluate(self, trained: TrainedSupernet, ranks: Ranks) -> int:
        def measure(task: str) -> str:
            return SubnetToMeasure.model_validate_json(task).confusion(trained, self.split)

        # Of a signal nobody has to be told: an evaluation leaves nothing half-written.
        with SharedWork(ranks, measure, Stop(), MEASURED_AGAIN) as work:
            if ranks.first:
                found = self._measure(trained, work)
            else:
                work.help()
                return 0
        if self.per_class:
            self._show_classes(found, trained.model.classes)
        return 0

    def _measure(self, trained: TrainedSupernet, work: SharedWork) -> dict[str, Counts]:
        """What each architecture takes each class for, by name; printed as a table."""
        # Among them which folder a split is, where its name is another.
        for note in trained.data.notes:
            print(note)
        archs, tuned = self._archs(trained), {}
        if not (self.untuned or trained.model.arch):
            for name, arch in archs.items():
                tuned[name] = find_tuned(self.run, name_of(name), arch)
        tasks = []
        for name, arch in archs.items():
            task = SubnetToMeasure(name=name_of(name), arch=arch, tuned=tuned.get(name) is not None)
            tasks.append(task.model_dump_json())
        names, measured = list(archs), {}
        with progress("evaluate", len(archs)) as advance:
            for i, counts in work.results(tasks):
                measured[names[i]] = counts_from_text(counts)
                advance(names[i])
        found = {name: measured[name] for name in names}  # in the order that was asked for
        table = Table("architecture", "MACs", "params", f"{self.split} accuracy", "balanced", "worst")
        if any(tuned.values()):
            table.add_column("weights")
        for name, label in _labels(archs).items():
            macs, params = trained.cost(archs[name])
            cells = _cells(found[name], trained.model.classes)
            row = [label, format_count(macs), format_count(params), *cells]
            if any(tuned.values()):
                row.append(str(tuned[name] or "as taken from the supernet"))
            table.add_row(*row)
        show(table)
        count = trained.data.count(self.split)
        print(f"on {count} images; ±: one standard error; balanced: the mean over the classes")
        return found

    def _archs(self, trained: TrainedSupernet) -> dict[str, Arch]:
        """What is measured, by name."""
        # A run of a single architecture has nothing to choose from.
        if trained.model.arch:
            return {"alone": trained.model.arch}
        # JSON has commas of its own.
        names = [self.arch] if self.arch.lstrip().startswith("{") else self.arch.split(",")
        return {name: find_subnet(self.run, trained.space, name) for name in names}

    def _show_classes(self, found: Mapping[str, Counts], classes: Sequence[str]) -> None:
        """Print a table of classes for each architecture; write its picture and its counts."""
        folder = self.run / "confusion"
        for name, label in _labels(found).items():
            table = Table("class", "images", "accuracy", "most often taken for", title=label)
            for row in class_rows(found[name], classes):
                table.add_row(*map(str, row))
            show(table)
            # A label may be the path of a file, whose end tells it from others.
            short = re.sub(r"[^\w.-]+", "-", label)[-100:]
            write_confusion(folder / f"{short}-{self.split}", f"{short}, {self.split}", found[name], classes)
        print(f"written to {folder}: a .png and a .csv for each")


def _labels(names: Iterable[str]) -> dict[str, str]:
    """What each architecture is called: by the name of its file, or as it was given if two would be equal."""
    short = {name: name_of(name) for name in names}
    return short if len(set(short.values())) == len(short) else {name: name for name in short}


def _cells(confusion_KK: Counts, classes: Sequence[str]) -> list[str]:
    """Accuracy, balanced accuracy and the worst classes."""
    overall = format_accuracy(overall_accuracy(confusion_KK), int(confusion_KK.sum()))
    return [overall, f"{balanced_accuracy(confusion_KK):.2%}", worst_classes(confusion_KK, classes)]


if __name__ == "__main__":
    main(Evaluate)
