"""Find the best subnet of a trained supernet under a budget, in seconds, without training anything."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator
from rich.console import Console
from rich.table import Table

from engine.cli import main
from engine.config import Count, format_count
from engine.errors import UserError
from engine.progress import progress
from engine.run import atomic, write_json
from engine.seed import numpy_generator
from ofa.space import Codes, decode, largest, smallest
from ofa.trained import RunCommand, Trained, run_flag
from predictors.accuracy import make_predictor
from predictors.coarse import coarse_to_fine
from predictors.explore import Scores, evolve, evolve_front
from predictors.features import features
from predictors.measured import Candidate, Measured
from predictors.pairs import FRONT, read_pairs
from predictors.promising import Find, measure_promising
from predictors.quality import Name, compare, show
from predictors.study import study


class Select(RunCommand):
    """Find the best subnet under a FLOPs budget: predict, search, measure the most promising on validation images, learn, repeat.

    FLOPs means multiply-accumulates (MACs) of one image, as in the papers: 600M, 0.6G, 600e6 and 600000000 are the same.
    Several budgets at once: --flops 200M,400M,600M; what is measured for one competes under all. The test images are not touched.

    --explore evolve searches each budget by itself and refines the winners in an Optuna study; evolve-front answers all budgets with
    one evolution of the whole front (AttentiveNAS, AlphaNet); coarse-to-fine (BigNAS) predicts nothing and needs no collected
    pairs: it measures a coarse grid and then mutants of the best.

    The best subnet known wins, whether it was collected or measured now. What is measured now does not go to pairs.jsonl:
    the predictor's training set stays a fair sample, and the same command chooses the same again.

    examples:
      python -m predictors.select --flops 600M
      python -m predictors.select --run runs/photos --flops 50M,100M --measure 40
      python -m predictors.select --explore evolve-front --front --flops 100M,200M,300M,400M
      python -m predictors.select --explore coarse-to-fine --measure 100 --flops 600M
    """

    flops: tuple[Count, ...] = Field(min_length=1, description="budget in MACs, or several separated by commas")
    explore: Literal["evolve", "evolve-front", "coarse-to-fine"] = Field("evolve", description="where candidates come from; see above")
    predictor: Name = Field("auto", description="gp: Gaussian process; ridge: additive; boosting; mlp; auto: the best in cross-validation")
    trials: int = Field(64, ge=0, description="trials of the Optuna study, which starts from the winners of evolve; 0: no study")
    measure: int = Field(
        20, ge=1, description="subnets measured on the validation images for each budget; with coarse-to-fine, up to half of them coarse"
    )
    front: bool = Field(False, description="also write selected/front.json and .csv: the best measured subnet for every number of MACs")
    seed: int = Field(0, ge=0, description="of the search")

    @field_validator("flops", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return str(value).split(",") if isinstance(value, (str, int, float)) else value

    def execute(self) -> int:
        """Explore and measure, then write selected/<budget>.json."""
        trained = self.open_supernet()
        self._check_budgets(trained)
        pairs = read_pairs(self.run)
        measured = Measured(trained.space, trained.macs, lambda arch: trained.accuracy(arch, "val"), pairs)
        explored = self._coarse_to_fine(measured) if self.explore == "coarse-to-fine" else self._promising(measured)
        self._write(trained, measured, {"explore": self.explore, "pairs": len(pairs), "seed": self.seed} | explored)
        return 0

    def _check_budgets(self, trained: Trained) -> None:
        least, most = (trained.cost(f(trained.space))[0] for f in (smallest, largest))
        for budget in self.flops:
            if budget < least:
                raise UserError(
                    f"No subnet fits {format_count(budget)} MACs: the smallest of space '{trained.space.name}' needs "
                    f"{format_count(least)} ({least}); raise --flops or train a smaller space."
                )
            if budget > most:
                print(f"budget {format_count(budget)} is above the largest subnet ({format_count(most)} MACs): choosing the best of all")

    def _coarse_to_fine(self, measured: Measured) -> dict[str, Any]:
        with progress("measure candidates", self.measure * len(self.flops)) as advance:
            for budget in self.flops:
                coarse_to_fine(measured, budget, self.measure, numpy_generator(self.seed, "coarse to fine", budget), advance)
        return {}

    def _promising(self, measured: Measured) -> dict[str, Any]:
        codes, y = measured.training_set()
        X = features(measured.space, codes)
        qualities = compare(self.predictor, X, y, measured.macs(codes), self.seed)
        show(qualities, len(y))
        predictor = make_predictor(qualities[0].member).fit(X, y, self.seed)
        find = self._find_per_budget(measured) if self.explore == "evolve" else self._find_front(measured)
        with progress("measure candidates", self.measure * len(self.flops)) as advance:
            measure_promising(measured, predictor, qualities[0], find, self.measure, advance)
        return {"predictor": {name: value for name, value in qualities[0]._asdict().items() if name != "seconds"}}

    def _find_per_budget(self, measured: Measured) -> Find:
        """An evolution for each budget and, in the first round, an Optuna study of its winners."""
        space, macs = measured.space, measured.macs
        rngs = {budget: numpy_generator(self.seed, "evolve", budget) for budget in self.flops}

        def find(score: Scores, first: bool) -> Iterator[tuple[int, Codes]]:
            for budget in self.flops:
                found = evolve(space, score, macs, budget, rngs[budget])
                if first and self.trials:
                    journal, name = self.run / "optuna.journal", f"flops-{_name(budget)}"
                    tried = study(space, score, macs, budget, found[: self.trials // 2], self.trials, journal, name, self.seed)
                    found = np.unique(np.concatenate([found, tried]), axis=0)
                    found = found[np.argsort(-score(found), kind="stable")]
                yield budget, found

        return find

    def _find_front(self, measured: Measured) -> Find:
        """One evolution for all budgets."""
        rng = numpy_generator(self.seed, "evolve front")

        def find(score: Scores, first: bool) -> Iterator[tuple[int, Codes]]:
            found = evolve_front(measured.space, score, measured.macs, self.flops, rng)
            macs = measured.macs(found)
            return ((budget, found[macs <= budget]) for budget in self.flops)

        return find

    def _write(self, trained: Trained, measured: Measured, facts: dict[str, Any]) -> None:
        folder = self.run / "selected"
        chosen = {}
        for budget in self.flops:
            best, *others = measured.under(budget)
            name = _name(budget)
            chosen[name] = _describe(trained, best)
            candidates = [_describe(trained, candidate) for candidate in others if candidate.source == "select"]
            write_json(folder / f"{name}.json", chosen[name] | {"budget_macs": budget} | facts | {"candidates": candidates})
        _show("budget", chosen)
        if self.front:
            _write_front([_describe(trained, candidate) for candidate in measured.front()], folder / FRONT)
        print(f"written to {folder}\nnext: python -m export.onnx{run_flag(self.run)}")


def _write_front(front: list[dict[str, Any]], path: Path) -> None:
    write_json(path, front)
    with atomic(path.with_suffix(".csv")) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _flat(front[0]))
        writer.writeheader()
        writer.writerows(_flat(point) for point in front)
    _show("front", {str(i): point for i, point in enumerate(front, start=1)})


def _name(budget: int) -> str:
    return format_count(budget, digits=15)


def _describe(trained: Trained, candidate: Candidate) -> dict[str, Any]:
    arch = decode(trained.space, candidate.row)
    return {
        "arch": arch.model_dump(mode="json"),
        "params": trained.cost(arch)[1],
        **{k: v for k, v in candidate._asdict().items() if k != "row"},
    }


def _flat(facts: dict[str, Any]) -> dict[str, Any]:
    """One line of the table: numbers, then the architecture, lists joined by dashes."""
    arch = {name: "-".join(map(str, value)) if isinstance(value, list) else value for name, value in facts["arch"].items()}
    return {name: facts[name] for name in ("macs", "params", "val_accuracy", "source")} | arch


def _show(what: str, subnets: dict[str, dict[str, Any]]) -> None:
    table = Table(what, "MACs", "params", "predicted (90%)", "measured", "res", "depth")
    for name, facts in subnets.items():
        expected = facts["predicted_accuracy"]
        interval = facts["predicted_interval"] or ()
        predicted = "-" if expected is None else f"{100 * expected:.1f}% ({' to '.join(f'{100 * v:.1f}' for v in interval)})"
        shape = (str(facts["arch"]["resolution"]), "-".join(map(str, facts["arch"]["depth"])))
        numbers = (format_count(facts["macs"]), format_count(facts["params"]), predicted, f"{100 * facts['val_accuracy']:.1f}%")
        table.add_row(name, *numbers, *shape)
    Console().print(table)


if __name__ == "__main__":
    main(Select)
