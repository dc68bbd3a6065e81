"""Find the best subnet of a trained supernet for a device, in seconds, without training anything."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, field_validator, model_validator

from engine.command.cli import main
from engine.command.progress import Advance, progress
from engine.config import Count, format_count
from engine.errors import UserError, nearest
from engine.seed import numpy_generator
from ofa.space.arch import largest, smallest
from ofa.space.codes import Codes, decode, encode
from ofa.trained import RunCommand, TrainedSupernet, run_flag
from predictors.accuracy.features import features
from predictors.accuracy.models import make_predictor
from predictors.accuracy.pairs import read_pairs
from predictors.accuracy.validation import Name, compare, show
from predictors.search.coarse_to_fine import coarse_to_fine
from predictors.search.constraints import (
    UNITS,
    Bytes,
    Constraint,
    Costs,
    Milliseconds,
    fits,
    format_cost,
    round_up,
)
from predictors.search.costs import cost_functions
from predictors.search.dynamic_programming import Part, parts_of
from predictors.search.evaluations import Ask, Measured, Prediction
from predictors.search.evolution import nearest_feasible
from predictors.search.predictor_guided import Best, Front, measure_promising
from predictors.search.selected import Goal, write_front, write_goals
from predictors.search.study import Study, fingerprint, known_accuracies, open_storage


class Select(RunCommand):
    """Find the best subnet for a device: predict, search, measure the most promising on validation images,
    learn, repeat.

    Any limits together: --flops, --latency (with --latency-table), --size of the file, --memory for
    activations, --params. FLOPs means multiply-accumulates (MACs) of one image, as in the papers: 600M, 0.6G,
    600e6 and 600000000 are the same. Several budgets at once: --flops 200M,400M,600M; the other limits hold
    for each. --front macs,latency finds the whole front of accuracy against these costs.

    --explore search finds the highest predicted accuracy; coarse-to-fine (BigNAS) predicts nothing and needs
    no collected pairs: it measures a coarse grid and then mutants of the best.

    The best subnet known wins, whether it was collected or measured now; of those within one standard error
    of the best (--ties), the cheapest.
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
        (),
        description=(
            "write selected/front.json and .csv: accuracy against macs, latency, size, memory, params"
        ),
    )
    explore: Literal["search", "coarse-to-fine"] = Field(
        "search", description="where candidates come from; see above"
    )
    predictor: Name = Field(
        "auto",
        description=(
            "gp: Gaussian process; ridge: additive; boosting; mlp; auto: the best in cross-validation"
        ),
    )
    measure: int = Field(
        20,
        ge=1,
        description=(
            "subnets measured on validation images for each budget and for the front; coarse-to-fine: up to "
            "half coarse"
        ),
    )
    ties: float = Field(
        1.0,
        ge=0,
        description=(
            "standard errors below the best within which the cheapest wins; 0: the highest measured wins"
        ),
    )
    storage: str | None = Field(
        None,
        description="Optuna storage, a URL or the path of a journal; none: optuna.journal in the run folder",
    )
    seed: int = Field(0, ge=0, description="of the search")

    @field_validator("flops", "front", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return str(value).split(",") if isinstance(value, (str, int, float)) else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in self.front:
            if name not in UNITS:
                raise ValueError(f"--front has no cost '{name}'; {nearest(name, UNITS)}")
        if not self.front and not any((self.flops, self.latency, self.size, self.memory, self.params)):
            raise ValueError(
                "nothing says what to select; give a limit such as --flops 600M, or --front macs"
            )
        if (self.latency or "latency" in self.front) and self.latency_table is None:
            raise ValueError(
                "latency is of a device; name its table with --latency-table (python -m predictors.measure "
                "makes one)"
            )
        return self

    def execute(self) -> int:
        """Explore and measure, then write selected/."""
        trained = self.open_supernet()
        classes, channels = len(trained.model.classes), trained.model.channels
        costs = cost_functions(trained.space, classes, channels, self.latency_table)
        goals = self._goals(costs)
        for goal in goals:
            self._check_limits(trained, goal.constraints)
        pairs = read_pairs(self.run)
        measured = Measured(trained.space, trained.data.count("val"), pairs)
        storage = open_storage(self.storage or str(self.run / "optuna.journal"))
        prefix = f"{trained.space.name}-{fingerprint(self.run)}-"
        known = known_accuracies(storage, prefix, trained.space)
        accuracy = partial(_accuracy, trained, known)
        with progress("measure candidates", self.measure * len(goals)) as advance:
            asks = [
                _ask(
                    Study(storage, prefix + g.name, trained.space, g.constraints, g.front, accuracy), advance
                )
                for g in goals
            ]
            sums = parts_of(trained.space, classes, channels)
            of_weights = self.params or self.size or {"params", "size"} & set(self.front)
            parts = [sums["macs"], sums["params"]] if of_weights else [sums["macs"]]
            explored = self._explore(measured, list(zip(goals, asks, strict=True)), parts, costs["macs"])
        for row, value in known_accuracies(storage, prefix, trained.space).items():
            measured.add(np.frombuffer(row, np.uint8), value, "select")
        facts = {"explore": self.explore, "pairs": len(pairs), "seed": self.seed} | explored
        folder = self.run / "selected"
        write_goals([goal for goal in goals if not goal.front], measured, costs, facts, self.ties, folder)
        for goal in goals:
            if goal.front:
                write_front(goal, measured, costs, folder)
        print(f"written to {folder}\nnext: python -m export.onnx{run_flag(self.run)}")
        return 0

    def _goals(self, costs: Mapping[str, Costs]) -> list[Goal]:
        """What to find: the best for each budget, and the front."""
        limits = {"latency": self.latency, "size": self.size, "memory": self.memory, "params": self.params}
        others = [Constraint(name, limit, costs[name]) for name, limit in limits.items() if limit is not None]
        budgets = [[Constraint("macs", budget, costs["macs"]), *others] for budget in self.flops] or [others]
        goals = [Goal.best(constraints) for constraints in budgets if constraints]
        if self.front:
            loosest = max(budgets, key=lambda constraints: [c.limit for c in constraints])
            goals.append(
                Goal(
                    "-".join(["front", *self.front]),
                    tuple(loosest),
                    {name: costs[name] for name in self.front},
                )
            )
        return goals

    def _check_limits(self, trained: TrainedSupernet, constraints: tuple[Constraint, ...]) -> None:
        least, most = (encode(trained.space, f(trained.space))[None] for f in (smallest, largest))
        for c in constraints:
            if c.name == "macs" and c.cost(most)[0] < c.limit:
                most_macs = format_count(c.cost(most)[0])
                print(
                    f"budget {format_count(c.limit)} is above the largest subnet ({most_macs} MACs): "
                    "choosing the best of all"
                )
        if fits(constraints, least)[0]:
            return
        relaxed = nearest_feasible(trained.space, constraints, numpy_generator(self.seed, "feasible"), least)
        if relaxed:
            needed = " and ".join(
                f"{c.flag} {format_cost(c.name, round_up(c.name, least), 15)}" for c, least in relaxed
            )
            wanted = " ".join(map(str, constraints))
            raise UserError(
                f"No subnet of space '{trained.space.name}' keeps {wanted}; the nearest that one keeps is "
                f"{needed}."
            )

    def _explore(
        self, measured: Measured, goals: list[tuple[Goal, Ask]], parts: Sequence[Sequence[Part]], macs: Costs
    ) -> dict[str, Any]:
        if self.explore == "coarse-to-fine":
            for goal, ask in goals:
                coarse_to_fine(
                    measured,
                    goal.constraints,
                    self.measure,
                    numpy_generator(self.seed, "coarse to fine", goal.name),
                    ask,
                )
            return {}
        codes, y = measured.training_set()
        X = features(measured.space, codes)
        qualities = compare(self.predictor, X, y, macs(codes), self.seed)
        show(qualities, len(y))
        predictor = make_predictor(qualities[0].member).fit(X, y, self.seed)
        finds = [(self._find(goal), ask) for goal, ask in goals]
        measure_promising(
            measured,
            predictor,
            qualities[0],
            parts,
            finds,
            self.measure,
            numpy_generator(self.seed, "additive"),
        )
        return {
            "predictor": {name: value for name, value in qualities[0]._asdict().items() if name != "seconds"}
        }

    def _find(self, goal: Goal) -> Best | Front:
        rng = numpy_generator(self.seed, "search", goal.name)
        return (
            Front(list(goal.front.values()), goal.constraints, rng)
            if goal.front
            else Best(goal.constraints, rng)
        )


def _accuracy(trained: TrainedSupernet, known: Mapping[bytes, float], row: Codes) -> float:
    accuracy = known.get(row.tobytes())
    return trained.accuracy(decode(trained.space, row), "val") if accuracy is None else accuracy


def _ask(study: Study, advance: Advance) -> Ask:
    def ask(rows: Sequence[Codes], predictions: Sequence[Prediction | None]) -> list[float]:
        return study.measure(rows, predictions, lambda accuracy: advance(f"{accuracy:.2%}"))

    return ask


if __name__ == "__main__":
    main(Select)
