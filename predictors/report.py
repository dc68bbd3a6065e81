"""What selection was worth: chosen subnets against random ones of the same MACs on the test images, as a table and a picture."""

import csv
from typing import Any

import matplotlib
import numpy as np
from pydantic import Field
from rich.console import Console
from rich.table import Table

from engine.cli import main
from engine.config import format_count
from engine.progress import progress
from engine.run import atomic, write_json
from engine.seed import numpy_generator
from ofa.space import Arch, Codes, decode, encode, sample_codes
from ofa.trained import RunCommand, Trained
from predictors.pairs import Selected, read_pairs, read_selected

matplotlib.use("Agg")
from matplotlib import pyplot as plt

POOL, SAME_MACS = 200_000, 0.05


class Report(RunCommand):
    """Compare every selected subnet with random ones of the same MACs (within 5%, or the nearest) on the test images.

    Writes report/front.png, front.csv and report.json in the run folder and prints the table. Besides ofa.evaluate
    --split test, this is the only command that looks at the test images.

    examples:
      python -m predictors.report
      python -m predictors.report --run runs/photos --random 50
    """

    random: int = Field(20, ge=1, description="random subnets for each budget")
    seed: int = Field(0, ge=0, description="of the random subnets")

    def execute(self) -> int:
        """Measure, table, picture."""
        trained = self.open_supernet()
        chosen = read_selected(self.run)
        rows: list[dict[str, Any]] = []
        with progress("measure on test images", len(chosen) * (1 + self.random)) as advance:
            for name, facts in chosen:
                arch = decode(trained.space, encode(trained.space, facts.arch))
                group = [("selected", arch)] + [("random", decode(trained.space, c)) for c in self._random_of_same_macs(trained, arch)]
                for kind, candidate in group:
                    macs, params = trained.cost(candidate)
                    accuracy = trained.accuracy(candidate, "test")
                    rows.append({"budget": name, "kind": kind, "macs": macs, "params": params, "test_accuracy": accuracy})
                    advance(f"{kind} {accuracy:.2%}")
        self._write(chosen, rows)
        return 0

    def _random_of_same_macs(self, trained: Trained, arch: Arch) -> Codes:
        """`random` different uniform samples within 5% of the MACs of `arch`, without itself; where there are too few, the nearest."""
        wanted = trained.cost(arch)[0]
        rng = numpy_generator(self.seed, "same macs", wanted)
        pool = rng.permutation(np.unique(sample_codes(trained.space, POOL, rng), axis=0))
        pool = pool[(pool != encode(trained.space, arch)).any(1)]
        macs = trained.macs(pool)
        distance = np.maximum(np.abs(macs / wanted - 1), SAME_MACS)  # all within 5% are equally near
        return pool[np.argsort(distance, kind="stable")][: self.random]

    def _write(self, chosen: list[tuple[str, Selected]], rows: list[dict[str, Any]]) -> None:
        table = Table("budget", "MACs", "validation", "test", "random", "beats", "within")
        summary = []
        for name, facts in chosen:
            group = [r for r in rows if r["budget"] == name]
            mine = next(r["test_accuracy"] for r in group if r["kind"] == "selected")
            others = np.array([(r["test_accuracy"], r["macs"]) for r in group if r["kind"] == "random"])
            median, beaten = float(np.median(others[:, 0])), int((others[:, 0] < mine).sum())
            apart = float(np.abs(others[:, 1] / facts.macs - 1).max())
            numbers = (f"{facts.val_accuracy:.2%}", f"{mine:.2%}", f"{median:.2%}", f"{beaten} of {len(others)}", f"{apart:.0%}")
            table.add_row(name, format_count(facts.macs), *numbers)
            summary.append(
                {
                    "budget": name,
                    "macs": facts.macs,
                    "val_accuracy": facts.val_accuracy,
                    "test_accuracy": mine,
                    "random_median": median,
                    "random_beaten": beaten,
                    "random_count": len(others),
                    "random_macs_apart": apart,
                }
            )
        folder = self.run / "report"
        write_json(folder / "report.json", summary)
        with atomic(folder / "front.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        with atomic(folder / "front.png") as temporary:
            _draw(rows, [(p.macs, p.val_accuracy) for p in read_pairs(self.run)], temporary)
        Console().print(table)
        print(f"written to {folder}: front.png, front.csv, report.json")


def _draw(rows: list[dict[str, Any]], pairs: list[tuple[int, float]], path: Any) -> None:
    """Test accuracy against MACs of chosen and random subnets, over the validation accuracy of all collected ones."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    if pairs:
        axes.scatter([m for m, _ in pairs], [a for _, a in pairs], 10, "0.85", label="collected (validation)")
    looks = (("random", "random, same MACs (test)", 18, "tab:blue", "o"), ("selected", "selected (test)", 130, "tab:red", "*"))
    for kind, label, size, color, marker in looks:
        points = [r for r in rows if r["kind"] == kind]
        axes.scatter([r["macs"] for r in points], [r["test_accuracy"] for r in points], size, color, marker=marker, label=label)
    for budget in dict.fromkeys(r["budget"] for r in rows):
        mine = next(r for r in rows if r["budget"] == budget and r["kind"] == "selected")
        axes.annotate(budget, (mine["macs"], mine["test_accuracy"]), textcoords="offset points", xytext=(6, 8), color="tab:red")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: format_count(value))
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
    axes.set(xlabel="multiply-accumulates of one image (MACs)", ylabel="top-1 accuracy", title="Selected subnets against random ones")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=150, format="png")
    plt.close(figure)


if __name__ == "__main__":
    main(Report)
