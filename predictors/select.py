"""Find the best subnet of a trained supernet under a budget, in seconds, without training anything."""

import copy
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator
from rich.console import Console
from rich.table import Table

from engine.cli import main
from engine.config import Count, format_count
from engine.errors import UserError
from engine.progress import progress
from engine.run import write_json
from engine.seed import numpy_generator
from ofa.space import Codes, decode, features, largest, smallest
from ofa.trained import RunCommand, Trained, run_flag
from predictors.accuracy import Name, Predictor, cross_validated_tau, make_predictor
from predictors.explore import evolve, study
from predictors.pairs import read_pairs, training_set

PER_ROUND = 5
Known = tuple[Codes, NDArray[np.float64]]


class Select(RunCommand):
    """Find the best subnet under a FLOPs budget: predict, search, measure the most promising on validation images, learn, repeat.

    FLOPs means multiply-accumulates (MACs) of one image, as in the papers: 600M, 0.6G, 600e6 and 600000000 are the same.
    Several budgets at once: --flops 200M,400M,600M. The test images are not touched.

    examples:
      python -m predictors.select --flops 600M
      python -m predictors.select --run runs/photos --flops 50M,100M --measure 40
    """

    flops: tuple[Count, ...] = Field(min_length=1, description="budget in MACs, or several separated by commas")
    predictor: Name = Field("auto", description="gp: Gaussian process; ridge: additive; auto: gp for 30 to 2,000 pairs, else ridge")
    trials: int = Field(64, ge=0, description="trials of the Optuna study, which starts from the fast search's winners; 0: no study")
    measure: int = Field(20, ge=1, description="candidates measured on the validation images; the best of them wins")
    seed: int = Field(0, ge=0, description="of the search")

    @field_validator("flops", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return str(value).split(",") if isinstance(value, (str, int, float)) else value

    def execute(self) -> int:
        """Fit, search, measure, write selected/<budget>.json."""
        trained = self.open_supernet()
        least, most = (trained.cost(f(trained.space))[0] for f in (smallest, largest))
        for budget in self.flops:
            if budget < least:
                raise UserError(
                    f"No subnet fits {format_count(budget)} MACs: the smallest of space '{trained.space.name}' needs "
                    f"{format_count(least)} ({least}); raise --flops or train a smaller space."
                )
            if budget > most:
                print(f"budget {format_count(budget)} is above the largest subnet ({format_count(most)} MACs): choosing the best of all")
        codes, y = training_set(trained.space, read_pairs(self.run))
        tau = cross_validated_tau(self.predictor, features(trained.space, codes), y, self.seed)
        print(f"accuracy predictor: {len(y)} measured subnets, cross-validated Kendall tau {tau:.2f}")
        predictor = make_predictor(self.predictor, len(y)).fit(features(trained.space, codes), y, self.seed)
        results = {}
        for budget in self.flops:
            name = format_count(budget, digits=15)
            found = self._choose(trained, copy.deepcopy(predictor), (codes, y), budget, name)
            ranked = [_describe(trained, candidate) for candidate in found]
            facts = {"budget_macs": budget, "kendall_tau": tau, "pairs": len(y), "seed": self.seed, "candidates": ranked[1:]}
            write_json(self.run / "selected" / f"{name}.json", ranked[0] | facts)
            results[name] = ranked[0]
        _show(results)
        print(f"written to {self.run / 'selected'}\nnext: python -m export.onnx{run_flag(self.run)}")
        return 0

    def _choose(self, trained: Trained, predictor: Predictor, known: Known, budget: int, name: str) -> list["Candidate"]:
        """Candidates, best measured first and the cheaper one at a tie.

        A search over predictions finds where the predictor is too hopeful. So a few candidates are measured at a time, and
        the predictor learns from them before it is searched again.
        """
        space, macs = trained.space, trained.macs
        rng = numpy_generator(self.seed, "evolve", budget)
        done: dict[bytes, Candidate] = {}

        def score(rows: Codes) -> NDArray[np.float64]:
            return predictor.predict(features(space, rows))[0]

        with progress(f"measure candidates for {name}", self.measure) as advance:
            while len(done) < self.measure:
                found = evolve(space, score, macs, budget, rng)
                if self.trials and not done:
                    journal = self.run / "optuna.journal"
                    tried = study(space, score, macs, budget, found[: self.trials // 2], self.trials, journal, f"flops-{name}", self.seed)
                    found = np.unique(np.concatenate([found, tried]), axis=0)
                    found = found[np.argsort(-score(found), kind="stable")]
                fresh = [row for row in found if row.tobytes() not in done][: min(PER_ROUND, self.measure - len(done))]
                if not fresh:
                    break
                for row, mean, std in zip(fresh, *predictor.predict(features(space, np.stack(fresh))), strict=True):
                    accuracy = trained.accuracy(decode(space, row), "val")
                    done[row.tobytes()] = Candidate(row, int(macs(row[None])[0]), float(mean), float(std), accuracy)
                    advance(f"{accuracy:.2%}")
                more = list(done.values())
                codes_seen, y_seen = np.stack([c.row for c in more]), np.array([c.val_accuracy for c in more])
                predictor.update(features(space, np.concatenate([known[0], codes_seen])), np.concatenate([known[1], y_seen]))
        return sorted(done.values(), key=lambda c: (-c.val_accuracy, c.macs))


class Candidate(NamedTuple):
    """A measured candidate; the prediction is from before its measurement."""

    row: Codes
    macs: int
    predicted_accuracy: float
    predicted_std: float
    val_accuracy: float


def _describe(trained: Trained, candidate: Candidate) -> dict[str, Any]:
    arch = decode(trained.space, candidate.row)
    return {
        "arch": arch.model_dump(mode="json"),
        "params": trained.cost(arch)[1],
        **{k: v for k, v in candidate._asdict().items() if k != "row"},
    }


def _show(results: dict[str, dict[str, Any]]) -> None:
    table = Table("budget", "MACs", "params", "predicted", "measured", "res", "depth")
    for name, r in results.items():
        predicted = f"{100 * r['predicted_accuracy']:.1f} ± {100 * r['predicted_std']:.1f}%"
        shape = (str(r["arch"]["resolution"]), "-".join(map(str, r["arch"]["depth"])))
        table.add_row(name, format_count(r["macs"]), format_count(r["params"]), predicted, f"{100 * r['val_accuracy']:.1f}%", *shape)
    Console().print(table)


if __name__ == "__main__":
    main(Select)
