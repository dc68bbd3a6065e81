"""Find the best subnet of a trained supernet under a budget, in seconds, without training anything."""

from typing import Any

import numpy as np
from pydantic import Field, field_validator
from rich.console import Console
from rich.table import Table

from engine.cli import main
from engine.config import Count, format_count
from engine.errors import UserError
from engine.progress import progress
from engine.run import write_json
from engine.seed import numpy_generator
from ofa.cost import costs_of
from ofa.space import Arch, decode, largest, one_hot, smallest
from ofa.trained import RunCommand, Trained, run_flag
from predictors.accuracy import Name, Predictor, cross_validated_tau, make_predictor
from predictors.explore import evolve, study
from predictors.pairs import read_pairs, training_set


class Select(RunCommand):
    """Find the best subnet under a FLOPs budget: predict, search, and measure the few most promising on validation images.

    FLOPs means multiply-accumulates (MACs) of one image, as in the papers: 600M, 0.6G, 600e6 and 600000000 are the same.
    Several budgets at once: --flops 200M,400M,600M. The test images are not touched.

    examples:
      python -m predictors.select --flops 600M
      python -m predictors.select --run runs/photos --flops 50M,100M --measure 20
    """

    flops: tuple[Count, ...] = Field(min_length=1, description="budget in MACs, or several separated by commas")
    predictor: Name = Field("auto", description="gp: Gaussian process; ridge: additive; auto: gp for 30 to 2,000 pairs, else ridge")
    trials: int = Field(64, ge=0, description="trials of the Optuna study, which starts from the fast search's winners; 0: no study")
    measure: int = Field(10, ge=1, description="candidates measured on the validation images; the best of them wins")
    seed: int = Field(0, ge=0, description="of the search")

    @field_validator("flops", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return value.split(",") if isinstance(value, str) else value

    def execute(self) -> int:
        """Fit, search, measure, write selected/<budget>.json."""
        trained = self.open()
        least, most = (trained.cost(f(trained.space))[0] for f in (smallest, largest))
        for budget in self.flops:
            if budget < least:
                raise UserError(
                    f"No subnet fits {format_count(budget)} MACs: the smallest of space '{trained.space.name}' needs "
                    f"{format_count(least)} ({least}); raise --flops or train a smaller space."
                )
        codes, y = training_set(trained.space, read_pairs(self.run))
        X = one_hot(trained.space, codes)
        tau = cross_validated_tau(self.predictor, X, y, self.seed)
        print(f"accuracy predictor: {len(y)} measured subnets, cross-validated Kendall tau {tau:.2f}")
        predictor = make_predictor(self.predictor, len(y)).fit(X, y, self.seed)
        results = []
        for budget in self.flops:
            if budget > most:
                print(f"budget {format_count(budget)} is above the largest subnet ({format_count(most)} MACs): choosing the best of all")
            result = self._choose(trained, predictor, budget) | {"kendall_tau": tau, "pairs": len(y), "seed": self.seed}
            name = format_count(budget, digits=15)
            write_json(self.run / "selected" / f"{name}.json", result)
            results.append((name, result))
        _show(results)
        print(f"written to {self.run / 'selected'}\nnext: python -m export.onnx{run_flag(self.run)}")
        return 0

    def _choose(self, trained: Trained, predictor: Predictor, budget: int) -> dict[str, Any]:
        """Candidates by the fast search and the study, measured; best measured first."""
        space, classes, channels = trained.space, len(trained.model.classes), trained.model.channels

        def score(rows: Any) -> Any:
            return predictor.predict(one_hot(space, rows))[0]

        def macs(rows: Any) -> Any:
            return costs_of(space, rows, classes, channels).macs

        found = evolve(space, score, macs, budget, numpy_generator(self.seed, "evolve", budget))
        if self.trials:
            journal, name = self.run / "optuna.journal", f"flops-{format_count(budget, digits=15)}"
            tried = study(space, score, macs, budget, found[: self.trials // 2], self.trials, journal, name, self.seed)
            found = np.unique(np.concatenate([found, tried]), axis=0)
            found = found[np.argsort(-score(found), kind="stable")]
        candidates = []
        with progress("measure candidates", min(self.measure, len(found))) as advance:
            for row, mean, std in zip(found[: self.measure], *predictor.predict(one_hot(space, found[: self.measure])), strict=True):
                candidates.append(_measure(trained, decode(space, row), float(mean), float(std)))
                advance(f"{candidates[-1]['val_accuracy']:.2%}")
        candidates.sort(key=lambda c: (-c["val_accuracy"], c["macs"]))
        return {"budget_macs": budget, **candidates[0], "candidates": candidates[1:]}


def _measure(trained: Trained, arch: Arch, mean: float, std: float) -> dict[str, Any]:
    macs, params = trained.cost(arch)
    return {
        "arch": arch.model_dump(mode="json"),
        "macs": macs,
        "params": params,
        "predicted_accuracy": mean,
        "predicted_std": std,
        "val_accuracy": trained.accuracy(arch, "val"),
    }


def _show(results: list[tuple[str, dict[str, Any]]]) -> None:
    table = Table("budget", "MACs", "params", "predicted", "measured", "res", "depth")
    for name, r in results:
        predicted = f"{100 * r['predicted_accuracy']:.1f} ± {100 * r['predicted_std']:.1f}%"
        shape = (str(r["arch"]["resolution"]), "-".join(map(str, r["arch"]["depth"])))
        table.add_row(name, format_count(r["macs"]), format_count(r["params"]), predicted, f"{100 * r['val_accuracy']:.1f}%", *shape)
    Console().print(table)


if __name__ == "__main__":
    main(Select)
