"""Find the best subnet of a trained supernet for a device, in seconds, without training anything."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import optuna
from pydantic import Field, field_validator, model_validator

from engine.checkpoint import weights_digest
from engine.command.cli import main
from engine.command.progress import Advance, progress
from engine.command.start import say
from engine.config import Count, format_count
from engine.errors import UserError, nearest
from engine.seed import numpy_generator
from ofa.space.arch import largest, smallest
from ofa.space.codes import Codes, decode, encode
from ofa.trained import EvaluationPrecision, RunCommand, TrainedSupernet, run_flag
from predictors.accuracy.features import features
from predictors.accuracy.models import PredictorChoice, make_predictor
from predictors.accuracy.pairs import check_pairs, read_pairs
from predictors.accuracy.validation import compare_candidates, print_candidates
from predictors.search.best import nearest_feasible
from predictors.search.constraints import (
    EXACT_DIGITS,
    UNITS,
    ArchCostFn,
    Bytes,
    Constraint,
    Milliseconds,
    Objective,
    fits,
    format_cost,
    round_up,
)
from predictors.search.costs import cost_functions
from predictors.search.dynamic_programming import LayerCost, layer_costs
from predictors.selection.coarse_to_fine import coarse_to_fine
from predictors.selection.evaluations import EvaluateFn, Evaluations, Prediction
from predictors.selection.finalists import FINALIST_EPOCHS, tune_finalists
from predictors.selection.predictor_guided import BestProposer, FrontProposer, Proposer, predictor_guided
from predictors.selection.selected import write_front, write_selected
from predictors.selection.study import Study, known_accuracies, open_storage, run_fingerprint


class Select(RunCommand):
    """Find the best subnet for a device: predict, search, measure the best predicted, learn, repeat.

    Any limits together: --flops, --latency (with --latency-table), --size of the file, --memory for
    activations, --params. FLOPs means multiply-accumulates (MACs) of one image, as in the papers: 600M, 0.6G,
    600e6 and 600000000 are the same. Several budgets at once: --flops 200M,400M,600M; the other limits hold
    for each. --front macs,latency writes the whole front of accuracy against these costs as
    selected/front.json and .csv.

    --explore search finds the highest predicted accuracy; coarse-to-fine (BigNAS) predicts nothing and needs
    no collected pairs: it measures a coarse grid, up to half of --measure, and then mutants of the best.

    Accuracies are those of validation images. All known subnets compete, collected ones and those measured
    now: of the subnets within one standard error of the best accuracy (--ties), the cheapest is selected.

    Measurements are trials of an Optuna study in the run folder, or in --storage, where several processes and
    machines share them: the same command chooses the same again without measuring anything, and continues
    after an interruption. The test images are not touched.

    examples:
      python -m predictors.select --flops 600M
      python -m predictors.select --flops 600M --latency 15ms --latency-table my-laptop.json --size 20MB
      python -m predictors.select --run runs/photos --flops 50M,100M --measure 40
      python -m predictors.select --front macs,params
      python -m predictors.select --flops 600M --storage sqlite:///studies.db
    """

    main_flags: ClassVar[tuple[str, ...]] = (
        "--flops",
        "--latency",
        "--latency-table",
        "--size",
        "--memory",
        "--params",
        "--front",
        "--measure",
        "--run",
        "--threads",
    )

    flops: tuple[Count, ...] = Field(
        (), description="at most so many MACs, or several budgets separated by commas"
    )
    latency: Milliseconds | None = Field(
        None, description="at most so long for one image: 15ms, 0.015s; needs --latency-table"
    )
    latency_table: Path | None = Field(
        None, description="latency of a device, a file that predictors.measure wrote"
    )
    size: Bytes | None = Field(None, description="at most so large a file: 20MB, 64MiB")
    memory: Bytes | None = Field(None, description="at most so much memory for activations: 64MB")
    params: Count | None = Field(None, description="at most so many parameters: 6M")
    front: tuple[str, ...] = Field(
        (), description="write the front of accuracy against these: macs, latency, size, memory, params"
    )
    explore: Literal["search", "coarse-to-fine"] = Field(
        "search", description="how candidates are found; see above"
    )
    predictor: PredictorChoice = Field(
        "auto", description="gp: Gaussian process; ridge: additive; auto: the best in cross-validation"
    )
    measure: int = Field(20, ge=1, description="subnets to measure for each budget and for the front")
    ties: float = Field(
        1.0,
        ge=0,
        description="select the cheapest subnet within so many standard errors of the best; 0: the best",
    )
    tune_finalists: int = Field(
        0,
        ge=0,
        description="tune so many of the best measured for an epoch, and decide among them by that; 0: none",
    )
    precision: EvaluationPrecision = Field(
        "float32",
        description=(
            "int8: candidates are measured as 8-bit files compute; the pairs are those of predictors.collect "
            "--precision int8"
        ),
    )
    storage: str | None = Field(
        None,
        description="Optuna storage, a URL or the path of a journal; none: optuna.journal in the run folder",
    )
    seed: int = Field(0, ge=0, description="seed of the search")

    @field_validator("flops", "front", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """Split values that are separated by commas; a list from a config file stays as it is."""
        # A config file may hold one plain number.
        if isinstance(value, (str, int, float)):
            return str(value).split(",")
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in self.front:
            if name not in UNITS:
                raise ValueError(f"--front has no cost '{name}'; {nearest(name, UNITS)}")
        if not self.front and not any((self.flops, self.latency, self.size, self.memory, self.params)):
            raise ValueError(
                "nothing says what to select; give a limit such as --flops 600M, or --front macs"
            )
        if self.tune_finalists and self.precision != "float32":
            raise ValueError(
                f"--tune-finalists decides by accuracies in float32, not in {self.precision}; leave it out, "
                "and tune what is selected with ofa.tune --qat int8"
            )
        if (self.latency or "latency" in self.front) and self.latency_table is None:
            raise ValueError(
                "latency is of a device; name its table with --latency-table (python -m predictors.measure "
                "makes one)"
            )
        return self

    def execute(self) -> int:
        """Explore and measure, then write selected/."""
        # The study protects itself: processes that share it may work together.
        with self.write_lock(shared=True):
            return self._select()

    def _select(self) -> int:
        # Optuna reports every trial, which the progress bar does already. Its verbosity is one for the whole
        # process, so only the command may change it, and nothing that a library user calls.
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        trained = self.open_supernet()
        space, model = trained.space, trained.model
        costs = cost_functions(space, len(model.classes), model.channels, self.latency_table)
        objectives = self._objectives(costs)
        for objective in objectives:
            self._check_limits(trained, objective.constraints)
        pairs = read_pairs(self.run, self.precision)
        check_pairs(pairs, trained, self.precision)
        if self.precision != "float32" and self.explore == "search" and not pairs:
            raise UserError(
                f"No subnet of run '{self.run}' is measured in {self.precision}, from which a predictor "
                f"could learn; run python -m predictors.collect{run_flag(self.run)} --precision "
                f"{self.precision} first, or search without a predictor: --explore coarse-to-fine."
            )
        evaluations = Evaluations(space, trained.data.count("val"), pairs)
        storage = open_storage(self.storage or str(self.run / "optuna.journal"))
        # The storage may be shared with other runs: accuracies of other weights, or of another precision,
        # must not be mixed with these. No prefix is the start of another one.
        kind = "" if self.precision == "float32" else f"{self.precision}-"
        prefix = f"{space.name}-{kind}{run_fingerprint(self.run)}-"
        measure = partial(_accuracy, trained, self.precision, known_accuracies(storage, prefix, space))
        with progress("measure candidates", self.measure * len(objectives)) as advance:
            todo: list[tuple[Objective, EvaluateFn]] = []
            for objective in objectives:
                study = Study(storage, prefix + objective.name, space, objective, measure)
                todo.append((objective, partial(_evaluate, study, advance)))
            predictor: dict[str, Any] = {}
            if self.explore == "coarse-to-fine":
                self._explore_coarse_to_fine(evaluations, todo)
            else:
                sums = self._sums(trained)
                predictor = self._explore_predictions(evaluations, todo, sums, costs["macs"])
        # What other commands and processes have measured counts too.
        for row, accuracy in known_accuracies(storage, prefix, space).items():
            evaluations.add(np.frombuffer(row, np.uint8), accuracy, "select")
        facts = {"explore": self.explore, "pairs": len(pairs), "seed": self.seed} | predictor
        digest = weights_digest(self.run)
        folder = self.run / "selected"
        budgets = [objective for objective in objectives if not objective.front]
        finalists = {}
        if self.tune_finalists and budgets:
            finalists = tune_finalists(trained, evaluations, budgets, self.tune_finalists)
        facts = {"weights_sha256": digest, "precision": self.precision} | facts
        write_selected(budgets, evaluations, costs, facts, self.ties, folder, finalists)
        for name, found in finalists.items():
            tried = [f"{f.candidate.val_accuracy:.2%} -> {f.tuned_accuracy:.2%}" for f in found]
            print(f"{name}: {FINALIST_EPOCHS} epoch of tuning decided among {', '.join(tried)}")
        for objective in objectives:
            if objective.front:
                write_front(objective, evaluations, costs, folder, digest)
        say(f"written to {folder}\nnext: python -m ofa.tune{run_flag(self.run)}")
        return 0

    def _objectives(self, costs: Mapping[str, ArchCostFn]) -> list[Objective]:
        """What to find: the best subnet for each budget, and the front."""
        limits = {"latency": self.latency, "size": self.size, "memory": self.memory, "params": self.params}
        others = [Constraint(name, limit, costs[name]) for name, limit in limits.items() if limit is not None]
        # The other limits hold for each budget of MACs, or stand alone.
        budgets = [[Constraint("macs", budget, costs["macs"]), *others] for budget in self.flops]
        if not budgets:
            budgets = [others]
        objectives = [Objective.best(constraints) for constraints in budgets if constraints]
        if self.front:
            # One front covers all budgets. They differ in their first limit only, that of MACs, and the
            # largest one counts.
            loosest = max(budgets, key=_limits)
            name = "-".join(["front", *self.front])
            objectives.append(Objective(name, tuple(loosest), {name: costs[name] for name in self.front}))
        return objectives

    def _check_limits(self, trained: TrainedSupernet, constraints: tuple[Constraint, ...]) -> None:
        """Print a warning if a budget of MACs is above the largest subnet.

        Raises:
            UserError: no subnet keeps all limits. The error names the nearest limits that a subnet keeps.
        """
        space = trained.space
        least, most = encode(space, smallest(space))[None], encode(space, largest(space))[None]
        for c in constraints:
            if c.name == "macs" and c.cost(most)[0] < c.limit:
                most_macs = format_count(c.cost(most)[0])
                print(
                    f"budget {format_count(c.limit)} is above the largest subnet ({most_macs} MACs): "
                    "choosing the best of all"
                )
        # Usually the smallest subnet keeps all limits, and nothing has to be searched.
        if fits(constraints, least)[0]:
            return
        relaxed = nearest_feasible(space, constraints, numpy_generator(self.seed, "feasible"), least)
        if relaxed:
            needed = []
            for c, value in relaxed:
                needed.append(f"{c.flag} {format_cost(c.name, round_up(c.name, value), EXACT_DIGITS)}")
            raise UserError(
                f"No subnet of space '{space.name}' keeps {' '.join(map(str, constraints))}; the nearest "
                f"that one keeps is {' and '.join(needed)}."
            )

    def _explore_coarse_to_fine(
        self, evaluations: Evaluations, todo: Sequence[tuple[Objective, EvaluateFn]]
    ) -> None:
        for objective, evaluate in todo:
            rng = numpy_generator(self.seed, "coarse to fine", objective.name)
            coarse_to_fine(evaluations, objective.constraints, self.measure, rng, evaluate)

    def _explore_predictions(
        self,
        evaluations: Evaluations,
        todo: Sequence[tuple[Objective, EvaluateFn]],
        sums: Sequence[Sequence[LayerCost]],
        macs: ArchCostFn,
    ) -> dict[str, Any]:
        """Explore with the predictor that cross-validation prefers.

        Returns:
            What the selected/ files say of this predictor: its name and its quality in cross-validation.
        """
        codes, y = evaluations.training_set()
        X = features(evaluations.space, codes)
        qualities = compare_candidates(self.predictor, X, y, macs(codes), self.seed)
        print_candidates(qualities, len(y))
        quality = qualities[0]
        predictor = make_predictor(quality.member).fit(X, y, self.seed)
        proposers = [(self._proposer(objective), evaluate) for objective, evaluate in todo]
        rng = numpy_generator(self.seed, "additive")
        predictor_guided(evaluations, predictor, quality, sums, proposers, self.measure, rng)
        facts = quality._asdict()
        del facts["seconds"]  # the same command has to write the same file again
        return {"predictor": facts}

    def _proposer(self, objective: Objective) -> Proposer:
        rng = numpy_generator(self.seed, "search", objective.name)
        if objective.front:
            return FrontProposer(list(objective.front.values()), objective.constraints, rng)
        return BestProposer(objective.constraints, rng)

    def _sums(self, trained: TrainedSupernet) -> list[list[LayerCost]]:
        """The costs, as sums over layers, from whose exact fronts searches start."""
        found = layer_costs(trained.space, len(trained.model.classes), trained.model.channels)
        # Each further cost takes another dynamic programme, so parameters only where they or the size of the
        # file are limited or traded.
        if self.params or self.size or {"params", "size"} & set(self.front):
            return [found["macs"], found["params"]]
        return [found["macs"]]


def _limits(constraints: Sequence[Constraint]) -> list[float]:
    return [c.limit for c in constraints]


def _accuracy(
    trained: TrainedSupernet, precision: EvaluationPrecision, known: Mapping[bytes, float], row: Codes
) -> float:
    """Validation accuracy of an encoded architecture, measured only if no study has measured it yet."""
    accuracy = known.get(row.tobytes())
    if accuracy is None:
        accuracy = trained.accuracy(decode(trained.space, row), "val", precision)
    return accuracy


def _evaluate(
    study: Study, advance: Advance, rows: Sequence[Codes], predictions: Sequence[Prediction | None]
) -> list[float]:
    return study.measure(rows, predictions, lambda accuracy: advance(f"{accuracy:.2%}"))


if __name__ == "__main__":
    main(Select)
