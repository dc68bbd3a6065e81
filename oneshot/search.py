"""Search a cell: alternate steps of shared weights and of the architecture, then read the cell off.

Which gradient, which relaxation, which penalty: that is the method's (`oneshot.methods`). The search is one process on one device.
"""

from pathlib import Path
from typing import Any, Self

import torch
from pydantic import Field, model_validator
from rich.console import Console
from rich.table import Table as Grid
from torch import Tensor

from engine.checkpoint import load_state, save_state
from engine.cli import Command, main
from engine.config import format_count, merge, models_in, validate
from engine.data import Digits, load_data
from engine.device import pick_device
from engine.errors import UserError
from engine.interrupt import Stop, stop_on_signal, until_stopped
from engine.macs import count_parameters
from engine.progress import Advance, progress
from engine.run import Run, read_json, read_lines, write_json
from engine.seed import derive
from engine.text import AnyData, Grammar, TextFolder, load_text
from oneshot.baselines import reference_lines
from oneshot.benchmark import Dataset, Table
from oneshot.collapse import FACTOR, epoch_to_return_to, skips, warning
from oneshot.costs import DARTS_CIFAR, NASBENCH201, edge_costs
from oneshot.drawing import alphas_over_time, draw
from oneshot.genotype import Genotype
from oneshot.method import Method
from oneshot.methods import MethodConfig
from oneshot.methods.darts import Darts
from oneshot.penalty import Cost, Penalty
from oneshot.relax import At
from oneshot.searching import Costs, Searching
from oneshot.space import CellSpace, find_space
from oneshot.tasks import ImageTask, Task, TextSettings, TextTask, search_network

LOG_EVERY = 10


class Search(Command):
    """Search a cell on images or text with a differentiable method; retrain what it finds with oneshot.retrain.

    Half of the training images train shared weights, the other half the architecture. A method's published settings for the space are
    the defaults; --method.<setting> changes one, --penalties adds a loss (beta_decay, cost, ...) to any method that can bear it.

    examples:
      python -m oneshot.search                                                     first-order DARTS on the embedded digits, 2 minutes
      python -m oneshot.search --method pc_darts --penalties beta_decay --data npz --data.path cifar10.npz --out runs/pc
      python -m oneshot.search --method darts --method.order second --space nasbench201 --data npz --data.path cifar10.npz
      python -m oneshot.search --method gdas --space nasbench201 --table accuracy_200_epochs.csv --data npz --data.path cifar10.npz
      python -m oneshot.search --space recurrent --data text --data.path ptb --out runs/cell
    """

    config: str | None = Field(None, description="recipe: a YAML file, or a packaged name")
    out: Path = Field(Path("runs/search"), description="run folder to write")
    method: MethodConfig = Field(Darts(), description="the search method")
    space: str = Field("darts", description="darts, darts_s1 to darts_s3, nasbench201, recurrent")
    data: AnyData = Field(Digits(), description="images, or text for space recurrent")
    penalties: tuple[Penalty, ...] = Field((), description="added to the method's own: beta_decay, path_depth, entropy, cost")
    epochs: int | None = Field(None, ge=1, description="passes over the weights' part; none: the method's")
    batch_size: int | None = Field(None, ge=2, description="images (columns of text) a step; none: the method's")
    channels: int = Field(16, ge=2, description="width of the first cells of the search network")
    cells: int | None = Field(None, ge=1, description="how many; none: 8; in space nasbench201 in each of three stages, none: 5")
    text: TextSettings = Field(TextSettings(), description="the search network of space recurrent")
    table: Path | None = Field(None, description="NAS-Bench-201 results: log the true accuracy of the current choice in each epoch")
    dataset: Dataset = Field("cifar10", description="which of the table's data sets")
    table_budget: int = Field(100, ge=1, description="look-ups that random search and evolution get, to compare with")
    watch_every: int = Field(0, ge=0, description="epochs between measurements of the Hessian's dominant eigenvalue; 0: never")
    stop_at_collapse: bool = Field(
        False, description="RobustDARTS's rule: stop when the eigenvalue grows, go back 4 epochs; needs watch-every 1"
    )
    evaluate_images: int | None = Field(None, ge=1, description="images (words) that the mixture is measured on in each epoch; none: all")
    bf16: bool = Field(False, description="compute in bfloat16 where that is safe: faster on recent GPUs")
    seed: int = Field(0, ge=0, description="of weights, order, augmentation, draws and the halves")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1")
    threads: int | None = Field(None, ge=1, description="CPU threads; none: torch decides")
    resume: bool = Field(False, description="continue the run in --out if there is one")
    overwrite: bool = Field(False, description="replace the run in --out if there is one")

    @classmethod
    def prepare(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Under what is asked for, what was published for this method on this space."""
        method = values.get("method", {})
        method = method if isinstance(method, dict) else {"name": method}
        name, space = method.get("name", "darts"), values.get("space", "darts")
        kinds = [kind for kind in models_in(cls.model_fields["method"].annotation) if kind.model_fields["name"].default == name]
        published = kinds[0].on.get(space, {}) if kinds and issubclass(kinds[0], Method) else {}
        data = values.get("data", {"name": "grammar" if space == "recurrent" else "digits"})
        halves = {} if data.get("name") in ("grammar", "text") else {"val": 0.5}
        return values | {"method": merge({"name": name, **published}, method), "data": merge(halves, data)}

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.space == "recurrent") != isinstance(self.data, Grammar | TextFolder):
            raise ValueError(
                f"space {self.space} and data {self.data.name} do not go together; text is for space recurrent, images for others"
            )
        if self.table and self.space != "nasbench201":
            raise ValueError("table holds results of NAS-Bench-201; give it with --space nasbench201")
        if self.stop_at_collapse and self.watch_every != 1:
            raise ValueError("stop_at_collapse needs the eigenvalue of every epoch; add --watch-every 1")
        if (self.watch_every or self.stop_at_collapse) and (self.method.samples or not self.method.learns):
            raise ValueError(f"method {self.method.name} has no smooth loss in the architecture to watch; leave out watch_every")
        return self

    def execute(self) -> int:
        """Search and write what was found."""
        if self.threads:
            torch.set_num_threads(self.threads)
        space = find_space(self.space)
        method = validate(
            type(self.method), self.method.model_dump() | {"penalties": (*self.method.penalties, *self.penalties)}, "--penalties"
        )
        refusal = method.refuse(space)
        if refusal:
            raise UserError(refusal)
        table = Table.read(self.table) if self.table else None
        device = pick_device(self.device)
        task = self._task(space, method, device)
        epochs = self.epochs or method.epochs
        searching = Searching(method, space, task, self.seed, epochs, self._costs(space, method, device))
        run = Run.start(self.out, self, resume=self.resume, overwrite=self.overwrite)
        if run.finished:
            print(f"{run.path} is finished already.")
            return _next(run.path, self.space)
        return Loop(self, run, searching, table).run()

    def _task(self, space: CellSpace, method: Method, device: torch.device) -> Task:
        batch_size = self.batch_size or method.batch_size
        if isinstance(self.data, Grammar | TextFolder):
            return TextTask(load_text(self.data), self.text, batch_size, self.seed, device)
        data = load_data(self.data, device, self.seed)
        cells = self.cells or (5 if space.name == "nasbench201" else 8)
        with torch.random.fork_rng(devices=[]):  # torch's initialisers draw from the global generator
            torch.manual_seed(derive(self.seed, "weights"))
            network = search_network(space, method, self.channels, cells, len(data.classes), data.channels)
        return ImageTask(network, data, method, batch_size, self.bf16)

    def _costs(self, space: CellSpace, method: Method, device: torch.device) -> Costs:
        """Of the final network that the published evaluation builds."""
        wanted = next((penalty for penalty in method.penalties if isinstance(penalty, Cost)), None)
        if wanted is None:
            return Costs()
        if wanted.of == "latency":
            return read_costs(wanted.table, space, device)
        found = edge_costs(space, wanted.of, NASBENCH201 if space.name == "nasbench201" else DARTS_CIFAR)
        edges = {kind: torch.tensor(cost, dtype=torch.float32, device=device) for kind, cost in found.edges.items()}
        return Costs(edges, float(found.constant))


class Loop:
    """A search from its current step to its end, or to a signal; metrics.jsonl is its memory."""

    def __init__(self, config: Search, run: Run, searching: Searching, table: Table | None):
        self.config, self.folder, self.searching, self.table = config, run, searching, table
        self.epoch, self.done = 0, 0  # pairs of batches of this epoch
        self.step = 0
        self.pending: list[Tensor] = []  # losses that the host has not looked at
        if (run.path / "state.pt").exists():
            self.load()

    def run(self) -> int:
        """All epochs, then the choice."""
        searching, epochs = self.searching, self.searching.epochs
        total = self.step - self.done + sum(searching.task.steps(epoch) for epoch in range(self.epoch, epochs))
        introduce(self.config, searching)
        with stop_on_signal() as stop, progress("search", total, self.step) as advance:
            while self.epoch < epochs:
                self.train(stop, advance)
                self.log()
                if self.done == searching.task.steps(self.epoch):
                    self.end_epoch()
                self.save()
                if stop.requested and self.epoch < epochs:
                    print(f"stopped in epoch {self.epoch + 1} of {epochs}; continue with the same command and --resume")
                    return 130
                if self.collapsed() is not None:
                    break
        return self.finish()

    def train(self, stop: Stop, advance: Advance) -> None:
        """The rest of the current epoch, or up to a signal."""
        self.searching.at = At(self.epoch, self.searching.epochs)
        batches = self.searching.task.batches(self.epoch, self.done)
        for train, valid in until_stopped(batches, stop):
            self.pending.append(self.searching.step(self.done, train, valid))
            self.done, self.step = self.done + 1, self.step + 1
            advance(self.log() if self.step % LOG_EVERY == 0 else "")
            if stop.requested:
                break

    def log(self) -> str:
        """Look at the losses since the last look: one host synchronisation. Returns a note for the progress bar.

        Raises:
            UserError: one of them is not finite.
        """
        if not self.pending:
            return ""
        losses_S2, self.pending = torch.stack(self.pending).cpu(), []
        if not bool(losses_S2.isfinite().all()):
            raise UserError(
                f"The loss is not finite near step {self.step} (epoch {self.epoch + 1}); start again with a lower --method.sgd.lr "
                f"(now {self.searching.method.sgd.lr}). The last good checkpoint stays in '{self.folder.path}'."
            )
        of_weights, of_architecture = losses_S2.mean(0).tolist()
        self.folder.log(step=self.step, epoch=self.epoch, loss=of_weights, architecture_loss=of_architecture)
        return f"epoch {self.epoch + 1}  loss {of_weights:.3f}"

    def end_epoch(self) -> None:
        """What the method does between epochs; then measure and log the current choice."""
        searching, method = self.searching, self.searching.method
        method.after_epoch(searching)
        genotype = method.genotype(searching)
        quality = searching.measure(limit=self.config.evaluate_images)
        probabilities = method.probabilities(searching.space, searching.alphas)
        point: dict[str, Any] = {
            searching.task.quality: quality,
            "skips": skips(genotype),
            "genotype": genotype.model_dump(mode="json"),
            "alphas": {kind: [[round(p, 5) for p in row] for row in values.tolist()] for kind, values in probabilities.items()},
        }
        every = self.config.watch_every
        if every and (self.epoch + 1) % every == 0:
            _, valid = next(searching.task.batches(self.epoch, 0))
            point["eigenvalue"] = searching.eigenvalue(valid)
        if self.table:
            point |= {"true_accuracy": self.table.accuracy(genotype, self.config.dataset)}
        self.epoch, self.done = self.epoch + 1, 0
        self.folder.log(step=self.step, epoch=self.epoch - 1, **point)

    def epochs_logged(self) -> list[dict[str, Any]]:
        """What the ends of epochs logged."""
        return [point for point in read_lines(self.folder.path / "metrics.jsonl") if "genotype" in point]

    def collapsed(self) -> int | None:
        """The epoch to go back to, if the rule is asked for and says so."""
        if not self.config.stop_at_collapse:
            return None
        return epoch_to_return_to([point["eigenvalue"] for point in self.epochs_logged()])

    def finish(self) -> int:
        """Read the cell off, write and draw it."""
        searching, path, logged = self.searching, self.folder.path, self.epochs_logged()
        back = self.collapsed()
        searching.at = At(searching.epochs - 1, searching.epochs)
        if back is None:
            genotype = searching.method.final_genotype(searching)
        else:
            genotype = Genotype.model_validate(logged[back]["genotype"])
            print(
                f"The dominant eigenvalue grew by more than {FACTOR}: stopped after epoch {len(logged)}, took the cell of epoch {back + 1}."
            )
        write_json(path / "genotype.json", genotype.model_dump(mode="json"))
        draw(genotype, path / "cell")
        if searching.method.learns:
            alphas_over_time([point["alphas"] for point in logged], searching.space, path / "alphas.png")
        report(self.config, searching, genotype, self.table)
        self.folder.finish()
        return _next(path, self.config.space)

    def save(self) -> None:
        """What --resume needs."""
        save_state(self.folder.path / "state.pt", {"epoch": self.epoch, "done": self.done, "step": self.step} | self.searching.state())

    def load(self) -> None:
        """Continue from state.pt.

        Raises:
            UserError: it is of another search.
        """
        path = self.folder.path / "state.pt"
        state = load_state(path, self.searching.device)
        try:
            self.searching.load(state)
            self.epoch, self.done, self.step = (int(state[name]) for name in ("epoch", "done", "step"))
        except (KeyError, RuntimeError, ValueError, TypeError):
            raise UserError(f"Resume state '{path}' is not of this run; start again with --overwrite.") from None
        self.folder.forget_after(self.step)
        print(f"resumed in epoch {self.epoch + 1} of {self.searching.epochs}")


def introduce(config: Search, searching: Searching) -> None:
    """Print what is searched on what."""
    method, task = searching.method, searching.task
    size = format_count(count_parameters(task.network))
    how = f"{method.order} order" if method.learns and method.level == "bilevel" else method.level if method.learns else "sampled"
    print(f"method {method.name} ({how}) on space {searching.space.name}; search network of {size} parameters")
    print(f"{searching.epochs} epochs of {task.steps(0)} steps; device {searching.device}")


def report(config: Search, searching: Searching, genotype: Genotype, table: Table | None) -> None:
    """What was found, in words."""
    grid = Grid("cell", "node", "edges: operation from state")
    for kind, cell in genotype.cells.items():
        for node, edges in enumerate(cell.nodes, start=searching.space.inputs):
            grid.add_row(kind, str(node), ", ".join(f"{name} {source}" for name, source in edges))
    Console().print(grid)
    concern = warning(genotype)
    if concern:
        print(f"warning: {concern}")
    if table:
        lines = {"this choice": table.accuracy(genotype, config.dataset)} | reference_lines(
            table, config.dataset, config.table_budget, config.seed
        )
        compared = Grid(f"true accuracy on {config.dataset}, %", "")
        for name, value in lines.items():
            compared.add_row(name, f"{value:.2f}")
        Console().print(compared)


def read_costs(path: Path | None, space: CellSpace, device: torch.device) -> Costs:
    """A latency table: operation -> cost on any edge of any cell, or kind of cell -> edges -> operations.

    Raises:
        UserError: there is none, or it does not fit the space.
    """
    if path is None:
        raise UserError('Penalty cost of latency needs a table; add "table": "FILE.json" to it, with a cost for each operation.')
    values = read_json(path)
    shape = (len(space.edges), len(space.operations))
    try:
        if set(space.cells) <= set(values):
            edges = {kind: torch.tensor(values[kind], dtype=torch.float32) for kind in space.cells}
        else:
            row = torch.tensor([0.0 if name == "none" else float(values[name]) for name in space.operations])
            edges = {kind: row.expand(shape) for kind in space.cells}
        assert all(cost.shape == shape for cost in edges.values())
    except (KeyError, TypeError, ValueError, AssertionError):
        wanted = f"{', '.join(space.operations)}; or for each of {', '.join(space.cells)}, {shape[0]} rows of {shape[1]} numbers"
        raise UserError(f"Cost table '{path}' does not fit space {space.name}: it must have a number for each of {wanted}.") from None
    return Costs({kind: cost.to(device) for kind, cost in edges.items()}, float(values.get("constant", 0)))


def _next(path: Path, space: str) -> int:
    found = "" if space == "recurrent" else " --config oneshot/retrain_cifar"
    print(f"written to {path}: genotype.json, cell.svg, cell.png")
    print(f"next: python -m oneshot.retrain --genotype {path}{found} --data.path ... --out {path}-retrained")
    return 0


if __name__ == "__main__":
    main(Search)
