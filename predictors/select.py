"""Find the best subnet of a trained supernet for a device, in seconds, without training anything."""

from collections.abc import Mapping, Sequence
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import optuna
from pydantic import Field, field_validator, model_validator

from engine.checkpoint import weights_digest
from engine.command.cli import main
from engine.command.progress import Advance, progress
from engine.command.start import say
from engine.errors import UserError, nearest
from engine.run import FRONT, Run, read_json
from engine.seed import numpy_generator
from ofa.space.codes import Codes, decode, encode
from ofa.space.space import Space
from ofa.trained import EvaluationPrecision, RunCommand, TrainedSupernet, precision_flag, run_flag
from ofa.tuned import TUNED, example_flops
from predictors.accuracy.models import PredictorChoice
from predictors.accuracy.pairs import check_pairs, read_pairs
from predictors.latency.here import is_of_this_machine, time_architecture
from predictors.latency.model import LatencyModel, load_latency
from predictors.search.constraints import (
    NO_LIMIT,
    UNITS,
    ArchCostFn,
    Budget,
    Bytes,
    Constraint,
    Milliseconds,
    Objective,
    format_limit,
)
from predictors.search.costs import cost_functions
from predictors.search.limits import can_be_kept, check_limits
from predictors.selection.evaluations import EvaluateFn, Evaluations
from predictors.selection.exploration import (
    Explored,
    Guide,
    estimate_all,
    explore_by_predictions,
    explore_coarse_to_fine,
    make_guide,
)
from predictors.selection.finalists import choose_finalist, finalists_sentence, tune_finalists
from predictors.selection.selected import KEYS, print_trust, write_front, write_selected
from predictors.selection.timed import Stopwatch, keep_timed_limits
from predictors.studies.storage import open_storage
from predictors.studies.study import Study, known_accuracies, no_note, run_fingerprint


class Select(RunCommand):
    """Find the best subnet for a device: predict, search, measure the best predicted, learn, repeat.

    Any limits together: --flops, --latency (with --latency-table), --size of the file, --memory for
    activations, --params. FLOPs means multiply-accumulates (MACs) of one image, as in the papers: 600M, 0.6G,
    600e6 and 600000000 are the same. Several budgets at once: --flops 200M,400M,600M; the other limits hold
    for each. --front macs,latency writes the whole front of accuracy against these costs as
    selected/front.json and .csv.

    --explore search finds the highest predicted accuracy; coarse-to-fine (BigNAS) predicts nothing and needs
    no collected pairs: it measures a coarse grid, up to half of --measure, and then mutants of the best.

    Accuracies are those of validation images. Collected subnets and those measured for this budget compete.
    Selected is the one with the highest expected accuracy: its measurement and what a predictor says that
    learned from the others, each by its precision. No choice depends on other budgets of the command. The
    command also says what half of each budget would give, and how good its predictions were.

    Measurements are trials of an Optuna study in the run folder, or in --storage, where several processes and
    machines share them: the same command chooses the same again without measuring anything, and continues
    after an interruption. Trials that you add with Optuna count. The test images are not touched.

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

    flops: tuple[Budget, ...] = Field(
        (), description="at most so many MACs, or several budgets separated by commas"
    )
    latency: Milliseconds | None = Field(
        None,
        description="at most so long for the median run of one image: 15ms, 0.015s; needs --latency-table",
    )
    latency_table: Path | None = Field(
        None, description="latency of a device, a file that predictors.measure wrote"
    )
    verify_latency: bool = Field(
        True, description="time the selected subnets if the table is of this machine"
    )
    size: Bytes | None = Field(None, description="at most so large a file: 20MB, 64MiB")
    memory: Bytes | None = Field(None, description="at most so much memory for activations: 64MB")
    params: Budget | None = Field(None, description="at most so many parameters: 6M")
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
        0.0,
        ge=0,
        description="select the cheapest subnet within so many standard errors of the best; 0: the best",
    )
    tune_finalists: int = Field(
        0,
        ge=0,
        description="tune so many of the best expected for an epoch, and decide among them by that; 0: none",
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
        description="Optuna storage: the path of a journal, or a URL (sqlite:///studies.db, postgresql://, "
        "mysql://, journal+redis://); none: optuna.journal in the run folder",
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
            if self.front.count(name) > 1:
                raise ValueError(f"--front names '{name}' twice; name each cost once")
        for budget in self.flops:
            if self.flops.count(budget) > 1:
                raise ValueError(f"--flops has the budget {format_limit('macs', budget)} twice; give it once")
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
        if not self.front and not any((self.flops, self.latency, self.size, self.memory, self.params)):
            Run.open(self.run)
            example = example_flops(self.run)
            raise UserError(f"Nothing says what to select; give a limit such as {example}, or --front macs.")
        # The study protects itself: processes that share it may work together.
        with self.write_lock(shared=True):
            return self._select()

    def _select(self) -> int:
        # Optuna reports every trial, which the progress bar does already. Its verbosity is one for the whole
        # process, so only the command may change it, and nothing that a library user calls.
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        trained = self.open_supernet()
        space, model = trained.space, trained.model
        storage = open_storage(self.storage or str(self.run / "optuna.journal"))
        latency = self._latency_model(trained)
        costs = cost_functions(space, len(model.classes), model.channels, latency)
        objectives = self._objectives(costs)
        self._check_limits(space, objectives, latency)
        pairs = read_pairs(self.run, self.precision)
        check_pairs(pairs, trained, self.precision)
        if self.precision != "float32" and self.explore == "search" and not pairs:
            raise UserError(
                f"No subnet of run '{self.run}' is measured in {self.precision}, from which a predictor "
                f"could learn; run python -m predictors.collect{run_flag(self.run)} --precision "
                f"{self.precision} first, or search without a predictor: --explore coarse-to-fine."
            )
        images = trained.data.count("val")
        known = partial(Evaluations, space, images, pairs)
        guide = None
        if self.explore == "search":
            guide = make_guide(self.predictor, known(), costs["macs"], self.seed)
        # The storage may be shared with other runs: accuracies of other weights, or of another precision,
        # must not be mixed with these. No prefix is the start of another one.
        kind = "" if self.precision == "float32" else f"{self.precision}-"
        fingerprint = run_fingerprint(self.run)
        prefix = f"{space.name}-{kind}{fingerprint}-"
        measure = partial(_accuracy, trained, self.precision, known_accuracies(storage, prefix, space))
        codes = [encode(space, pair.arch) for pair in pairs]
        accuracies = [pair.val_accuracy for pair in pairs]
        attributes = {KEYS[name]: cost for name, cost in costs.items()}
        about = {"run": self.run.name, "fingerprint": fingerprint, "images": images}
        about |= {"precision": self.precision}
        explored: list[Explored] = []
        with progress("measure candidates", self.measure * len(objectives)) as advance:
            for objective in objectives:
                name = prefix + self._study_name(objective)
                study = Study(storage, name, space, objective, measure, attributes, about)
                study.add_pairs(codes, accuracies)
                evaluations = known()
                # They are no candidates of this command, which the bar counts.
                evaluations.add_measured(study.added(no_note))
                evaluate = partial(study.measure, note=partial(_note, advance))
                explored.append(self._explore(objective, guide, evaluations, evaluate, study))
        facts: dict[str, Any] = {"weights_sha256": weights_digest(self.run), "precision": self.precision}
        facts |= {"explore": self.explore, "pairs": len(pairs), "seed": self.seed}
        if guide:
            facts["predictor"] = guide.quality.facts()
        if latency is not None and self.latency and self.verify_latency and is_of_this_machine(latency.table):
            stopwatch = Stopwatch(partial(time_architecture, space, table=latency.table))
            costs["latency_measured"] = stopwatch.known
            worth_trying = partial(can_be_kept, space, latency.resolutions, self._feasible_rng())
            explored = keep_timed_limits(explored, stopwatch, self.tune_finalists, self.ties, worth_trying)
        self._write(trained, explored, costs, facts)
        if guide:
            print_trust(guide.quality, explored)
        self._print_end(objectives)
        return 0

    def _feasible_rng(self) -> np.random.Generator:
        return numpy_generator(self.seed, "feasible")

    def _print_end(self, objectives: Sequence[Objective]) -> None:
        """Print where the files are, and the command that goes on from there."""
        following = f"ofa.tune{run_flag(self.run)}"
        # Where others are tuned already, those that are not: a finished tuning is not begun again.
        tuned = self.run / TUNED
        untuned = [o.name for o in objectives if not o.front and not Run(tuned / o.name).finished]
        if tuned.exists() and untuned:
            following += f" --selected {','.join(untuned)}"
        if all(objective.front for objective in objectives):
            # Points of a front are no selected subnets. A limit makes one of them such, here the middle one.
            points = read_json(self.run / "selected" / FRONT)
            flags = f"{run_flag(self.run)}{precision_flag(self.precision)}"
            following = f"predictors.select{flags} --flops {points[len(points) // 2]['macs']}"
        say(f"written to {self.run / 'selected'}\nnext: python -m {following}")

    def _explore(
        self,
        objective: Objective,
        guide: Guide | None,
        evaluations: Evaluations,
        evaluate: EvaluateFn,
        study: Study,
    ) -> Explored:
        """Explore one objective, which nothing but its own study and the collected pairs teaches."""
        predictor = own_quality = None
        if guide is None:
            explore_coarse_to_fine(evaluations, objective, self.measure, self.seed, evaluate)
        else:
            found = explore_by_predictions(evaluations, objective, guide, self.measure, self.seed, evaluate)
            predictor, own_quality = guide.quality.member, found.own_quality()
        study.finish()
        estimates = estimate_all(evaluations, study.known(), predictor, self.seed)
        return Explored(objective, evaluations, estimates, own_quality)

    def _write(
        self,
        trained: TrainedSupernet,
        explored: Sequence[Explored],
        costs: Mapping[str, ArchCostFn],
        facts: dict[str, Any],
    ) -> None:
        """Decide, write selected/ and print what was found."""
        folder = self.run / "selected"
        budgets = [found for found in explored if not found.objective.front]
        finalists = {}
        if self.tune_finalists and budgets:
            best = {found.objective.name: found.best(self.tune_finalists) for found in budgets}
            finalists = tune_finalists(trained, best)
        write_selected(budgets, costs, facts, self.ties, folder, finalists)
        for found in budgets:
            tuned = finalists.get(found.objective.name, [])
            if tuned:
                constraints, images = found.objective.constraints, found.evaluations.images
                winner = choose_finalist(tuned, constraints, images, self.ties)
                print(finalists_sentence(found.objective.name, tuned, winner, costs["macs"]))
        for found in explored:
            if found.objective.front:
                write_front(found, costs, folder, facts["weights_sha256"])

    def _objectives(self, costs: Mapping[str, ArchCostFn]) -> list[Objective]:
        """What to find: the best subnet for each budget, and the front."""
        limits = {"latency": self.latency, "size": self.size, "memory": self.memory, "params": self.params}
        others = []
        for name, limit in limits.items():
            # What is limited is what nine of ten subnets keep, and not the mere prediction.
            cost = costs.get(f"{name}_bound", costs.get(name))
            if limit is not None:
                assert cost is not None, name
                others.append(Constraint(name, limit, cost))
        # The other limits hold for each budget of MACs, or stand alone.
        budgets = [[Constraint("macs", budget, costs["macs"]), *others] for budget in self.flops]
        if not budgets:
            budgets = [others]
        objectives = [Objective.best(constraints) for constraints in budgets if constraints]
        if self.front:
            # One front covers all budgets. They differ in their first limit only, that of MACs, and the
            # largest one counts.
            loosest = max(budgets, key=_limits)
            if "latency" in self.front and self.latency is None:
                # Where the table knows nothing latency is infinite, and no point of a front.
                loosest = [*loosest, Constraint("latency", NO_LIMIT, costs["latency"])]
            name = "-".join(["front", *self.front])
            objectives.append(Objective(name, tuple(loosest), {name: costs[name] for name in self.front}))
        return objectives

    def _study_name(self, objective: Objective) -> str:
        """The name of an objective's study: every study has its own limits, and one device."""
        name = objective.name
        if objective.front:
            # The file of a front has no limits in its name, since a run has one.
            limits = [c for c in objective.constraints if c.limit < NO_LIMIT]
            name = "-".join([name, *[Objective.best([c]).name for c in limits]])
        if self.latency_table is None or not (self.latency or "latency" in self.front):
            return name
        table = blake2b(self.latency_table.read_bytes(), digest_size=4)
        return f"{name}-{self.latency_table.stem}-{table.hexdigest()}"

    def _latency_model(self, trained: TrainedSupernet) -> LatencyModel | None:
        """The model of --latency-table; what a user has to know of it is printed if latency counts."""
        if self.latency_table is None:
            return None
        classes, channels = len(trained.model.classes), trained.model.channels
        latency = load_latency(self.latency_table, trained.space, classes, channels)
        if self.latency is not None or "latency" in self.front:
            for note in latency.notes():
                print(note)
        return latency

    def _check_limits(
        self, space: Space, objectives: Sequence[Objective], latency: LatencyModel | None
    ) -> None:
        """Refuse limits that no subnet keeps, and say once which are above the largest subnet."""
        sentences: list[str] = []
        for objective in objectives:
            resolutions = space.resolution
            if latency is not None and any(c.name == "latency" for c in objective.constraints):
                resolutions = latency.resolutions  # only those that the table covers are searched
            sentences += check_limits(space, objective.constraints, resolutions, self._feasible_rng())
        for sentence in dict.fromkeys(sentences):
            print(sentence)


def _limits(constraints: Sequence[Constraint]) -> list[float]:
    return [c.limit for c in constraints]


def _accuracy(
    trained: TrainedSupernet, precision: EvaluationPrecision, known: dict[bytes, float], row: Codes
) -> float:
    """Validation accuracy of an encoded architecture, measured only if no study has measured it yet."""
    accuracy = known.get(row.tobytes())
    if accuracy is None:
        accuracy = trained.accuracy(decode(trained.space, row), "val", precision)
        known[row.tobytes()] = accuracy  # another budget may ask for the same subnet
    return accuracy


def _note(advance: Advance, accuracy: float) -> None:
    advance(f"{accuracy:.2%}")


if __name__ == "__main__":
    main(Select)
