"""The epochs of a search, what is measured after each, and the cell that is read off at the end."""

from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from engine.loop import EpochLoop
from engine.run import Run, read_lines, write_json
from oneshot.chains.space import CHAIN
from oneshot.ending.collapse import FACTOR, NOT_BEFORE, epoch_to_return_to, skips, warning
from oneshot.ending.conclude import Ending, conclude
from oneshot.ending.drawing import alphas_over_time, draw_genotype
from oneshot.ending.outcome import print_comparison, print_found, print_introduction, print_outcome
from oneshot.ending.published import rate_remark
from oneshot.ending.record import Change, write_outcome
from oneshot.nasbench201.table import AccuracyTable, Dataset
from oneshot.searcher import Searcher
from oneshot.spaces.genotype import AnyGenotype, Genotype, genotype_kind


class Monitoring(NamedTuple):
    """What is measured beside the search.

    Args:
        evaluate_images: how many images (words) the current edge weights are measured on; None: all.
        watch_every: epochs between measurements of the eigenvalue; 0: never.
        stop_at_collapse: end as RobustDARTS's rule says.
        table: true accuracies, if there is a table.
        dataset: which of the table's data sets.
        table_budget: look-ups of the searchers that the choice is compared with.
        changes: settings that differ from the method's own on the space.
        recipe: of the retraining that the command prints; None: there is none.
    """

    evaluate_images: int | None = None
    watch_every: int = 0
    stop_at_collapse: bool = False
    table: AccuracyTable | None = None
    dataset: Dataset = "cifar10"
    table_budget: int = 100
    changes: tuple[Change, ...] = ()
    recipe: str | None = None


class SearchLoop(EpochLoop):
    """A search from its current step to its end, or to a signal; metrics.jsonl is its memory.

    Args:
        folder: the run folder.
        searcher: the method at work.
        monitoring: what is measured beside it.
    """

    verb: ClassVar[str] = "search"
    ends_take_long: ClassVar[bool] = True  # a controller's training, or a thousand candidates to judge

    def __init__(self, folder: Run, searcher: Searcher, monitoring: Monitoring):
        super().__init__(folder, searcher.total_epochs)
        self.searcher, self.monitoring = searcher, monitoring
        self.objective = searcher.state.objective
        # Whether the warning was printed: once is enough.
        self.warned = False
        self.restore()
        print_introduction(searcher)
        remark = rate_remark(monitoring.changes, searcher.method)
        if remark is not None:
            print(f"note: {remark}")

    def steps_in(self, epoch: int) -> int:
        """The number of pairs of batches."""
        return self.objective.steps(epoch)

    def begin_epoch(self) -> None:
        """Tell the search its epoch, on which schedules depend."""
        self.searcher.begin_epoch(self.epoch)

    def batches(self) -> Iterator[tuple[Any, Any]]:
        """Pairs of batches: of the weights' part, of the architecture's part."""
        return self.objective.batches(self.epoch, self.batches_done)

    def update(self, train: Any, valid: Any, /) -> None:
        """One search step."""
        self.done(self.searcher.step(self.batches_done, train, valid))

    def metrics(self, losses: list[float]) -> tuple[dict[str, Any], str]:
        """The weights' loss, and the architecture's where it moves."""
        weights_loss, architecture_loss = losses
        point = {"loss": weights_loss}
        # During a warm-up the architecture has no loss.
        if self.searcher.moves_architecture:
            # Only some steps of the weights may have one of the architecture beside them.
            point["architecture_loss"] = architecture_loss * self.searcher.method.architecture_every
        return point, f"epoch {self.epoch + 1}  loss {weights_loss:.3f}"

    def learned(self) -> dict[str, list[Tensor]]:
        """Weights and alphas."""
        weights: list[Tensor] = list(self.objective.network.parameters())
        return {"weights are": weights, "architecture is": self.searcher.state.alphas.all()}

    def divergence_hint(self, step: int) -> str:
        """A lower rate."""
        return f"--overwrite and a lower --method.sgd.lr (now {self.searcher.method.sgd.lr})"

    def after_epoch(self) -> None:
        """What the method does between epochs; then measure and log the current choice."""
        searcher, state, monitoring = self.searcher, self.searcher.state, self.monitoring
        # A controller is trained here, so that the choice below is its new one.
        searcher.method.after_epoch(state)
        genotype = searcher.method.genotype(state)
        point: dict[str, Any] = {
            self.objective.quality: searcher.measure(monitoring.evaluate_images),
            "skips": skips(genotype),
            "genotype": genotype.model_dump(mode="json"),
            "alphas": self._rounded_probabilities(),
        }
        if monitoring.watch_every and (self.epoch + 1) % monitoring.watch_every == 0:
            # Always the same batch of an epoch, so that a resumed search measures the same.
            _, valid = next(self.objective.batches(self.epoch, 0))
            point["eigenvalue"] = searcher.eigenvalue(valid)
        if monitoring.table:
            assert isinstance(genotype, Genotype), "tables are of NAS-Bench-201"
            point["true_accuracy"] = monitoring.table.accuracy(genotype, monitoring.dataset)
        self.folder.log(step=self.step, epoch=self.epoch, **point)
        if self.epoch + 1 >= NOT_BEFORE and not self.warned:
            self.warn(genotype, self.epoch + 1)

    def _rounded_probabilities(self) -> dict[str, list[list[float]]]:
        """(E, O) for each kind of cell, short enough for metrics.jsonl."""
        rounded: dict[str, list[list[float]]] = {}
        state = self.searcher.state
        for kind, values in self.searcher.method.probabilities(state.space, state.alphas).items():
            rounded[kind] = []
            for row in values.tolist():
                rounded[kind].append([round(probability, 5) for probability in row])
        return rounded

    def warn(self, genotype: AnyGenotype, epochs: int) -> None:
        """Print a warning if the search seems to collapse; only methods that learn by gradient collapse."""
        method = self.searcher.method
        concern = warning(genotype, method) if method.has_architecture_step else None
        if concern:
            print(f"warning, after epoch {epochs}: {concern}")
            self.warned = True

    def epochs_logged(self) -> list[dict[str, Any]]:
        """What the ends of epochs logged."""
        return [point for point in read_lines(self.folder.path / "metrics.jsonl") if "genotype" in point]

    def collapsed(self) -> int | None:
        """The epoch to go back to by RobustDARTS's rule; None if it is not asked for or does not stop."""
        if not self.monitoring.stop_at_collapse:
            return None
        return epoch_to_return_to([point["eigenvalue"] for point in self.epochs_logged()])

    def ends_early(self) -> bool:
        """After a collapse."""
        return self.collapsed() is not None

    def finish(self) -> None:
        """Read the cell off, write and draw it."""
        state, method, path = self.searcher.state, self.searcher.method, self.folder.path
        report = None
        logged, back = self.epochs_logged(), self.collapsed()
        if back is None:
            # With the temperatures of the last epoch, also in a resumed search that did not run it.
            self.searcher.begin_epoch(self.epochs - 1)
            genotype, report = self.searcher.final_genotype()
        else:
            values = logged[back]["genotype"]
            genotype = genotype_kind(values).model_validate(values)
            if state.target is not None:
                genotype, report = state.target.read_off(torch.tensor(logged[back]["alphas"][CHAIN]))
            print(
                f"The eigenvalue grew by more than {FACTOR}: stopped after epoch {len(logged)}, took the "
                f"cell of epoch {back + 1}."
            )
        # What oneshot.retrain reads.
        write_json(path / "genotype.json", genotype.model_dump(mode="json"))
        draw_genotype(genotype, path / "cell")
        # Methods without such a step have no table of parameters to draw.
        if method.has_architecture_step:
            alphas_over_time([point["alphas"] for point in logged], state.space, path / "alphas.png")
        print_found(genotype, self.objective, report)
        monitoring = self.monitoring
        # As they were when this cell was read off.
        probabilities = method.probabilities(state.space, state.alphas)
        if back is not None:
            weights = logged[back]["alphas"].items()
            probabilities = {kind: torch.tensor(values) for kind, values in weights}
        ending = Ending(
            probabilities=probabilities,
            search_network=logged[-1][self.objective.quality] if logged else None,
            steps=self.step,
            limit=monitoring.evaluate_images,
            changes=monitoring.changes,
            recipe=monitoring.recipe,
            report=report,
        )
        outcome = conclude(self.searcher, genotype, ending)
        write_outcome(path, outcome)
        print_outcome(outcome)
        if monitoring.table:
            assert isinstance(genotype, Genotype), "tables are of NAS-Bench-201"
            print_comparison(
                genotype, monitoring.table, monitoring.dataset, monitoring.table_budget, state.seed
            )
        # DONE comes last: a search that is killed before writes its findings again.
        self.folder.finish("genotype.json")
        closing = "" if outcome.above_chance else "; this search ended no better than chance"
        if outcome.architecture_steps == 0:
            closing = "; this search learned nothing of the architecture: see the note on what to change"
        print(f"written to {path}: genotype.json, outcome.json, cell.svg, cell.png{closing}")

    def resumed_place(self) -> str:
        """In epochs, since a resumed search may begin with an epoch's end."""
        return f"in epoch {self.epoch + 1} of {self.epochs}" if self.epoch < self.epochs else "at the end"

    def state(self) -> dict[str, Any]:
        """The search's state."""
        return self.searcher.state.state_dict()

    def load(self, state: dict[str, Any]) -> None:
        """Take up such a state."""
        self.searcher.state.load_state_dict(state)
