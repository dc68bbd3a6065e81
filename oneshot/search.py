"""Search a cell: alternate steps of shared weights and of the architecture, then read the cell off.

Which gradient, which relaxation, which penalty: that is the method's (`oneshot.methods`). The search is one
process on one device.
"""

from pathlib import Path
from typing import Any, NoReturn, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from engine.checkpoint import load_state, save_state
from engine.command.cli import Command, main
from engine.command.interrupt import Stop, stop_on_signal, until_stopped
from engine.command.progress import Advance, progress
from engine.compute.device import pick_device
from engine.config import Located, merge, models_in, validate
from engine.data.digits import Digits
from engine.data.sources import AnyData, load_data
from engine.data.text import Grammar, TextFolder, load_text
from engine.errors import UserError
from engine.run import Run, read_lines, write_json
from engine.seed import derive
from oneshot.axes.penalty import Penalty
from oneshot.axes.relaxation import At
from oneshot.collapse import FACTOR, NOT_BEFORE, epoch_to_return_to, skips, warning
from oneshot.drawing import alphas_over_time, draw
from oneshot.methods import MethodConfig
from oneshot.methods.darts import Darts
from oneshot.methods.method import Method
from oneshot.nasbench201.table import Dataset, Table
from oneshot.objectives import ImageTask, Task, TextSettings, TextTask, search_network
from oneshot.outcome import compare, describe, introduce, retrain_command
from oneshot.spaces.cells import CellSpace, find_space
from oneshot.spaces.expected_cost import costs_of
from oneshot.spaces.genotype import Genotype
from oneshot.state import Searching

LOG_EVERY = 10


class Search(Command):
    """Search a cell on images or text with a differentiable method; retrain what it finds with
    oneshot.retrain.

    Half of the training images train shared weights, the other half the architecture. A method's published
    settings for the space are the defaults; --method.<setting> changes one, --penalties adds a loss
    (beta_decay, cost, ...) to any method that can bear it.

    examples:
      python -m oneshot.search                                                   first-order DARTS on the
      embedded digits, under 10 minutes python -m oneshot.search --method pc_darts --penalties beta_decay
      --data npz --data.path cifar10.npz --out runs/pc python -m oneshot.search --method darts --method.order
      second --space nasbench201 --data npz --data.path cifar10.npz python -m oneshot.search --method gdas
      --space nasbench201 --table accuracy_200_epochs.csv --data npz --data.path cifar10.npz python -m
      oneshot.search --space recurrent --data text --data.path ptb --out runs/cell
    """

    config: str | None = Field(None, description="recipe: a YAML file, or a packaged name")
    out: Path = Field(Path("runs/search"), description="run folder to write")
    method: MethodConfig = Field(Darts(), description="the search method")
    space: str = Field("darts", description="darts, darts_s1 to darts_s3, nasbench201, recurrent")
    data: AnyData = Field(Digits(val=0.5), description="images, or text for space recurrent")
    penalties: tuple[Penalty, ...] = Field(
        (),
        description=(
            "beside the method's own: beta_decay, path_depth, entropy, cost; names, or JSON with their "
            "settings"
        ),
    )
    epochs: int | None = Field(None, ge=1, description="passes over the weights' part; none: the method's")
    batch_size: int | None = Field(
        None, ge=2, description="images (columns of text) a step; none: the method's"
    )
    channels: int = Field(16, ge=2, description="width of the first cells of the search network")
    cells: int | None = Field(
        None, ge=1, description="how many; none: 8; in space nasbench201 in each of three stages, none: 5"
    )
    text: TextSettings = Field(TextSettings(), description="the search network of space recurrent")
    table: Located | None = Field(
        None, description="NAS-Bench-201 results: log the true accuracy of the current choice in each epoch"
    )
    dataset: Dataset = Field("cifar10", description="which of the table's data sets")
    table_budget: int = Field(
        100, ge=1, description="look-ups that random search and evolution get, to compare with"
    )
    watch_every: int = Field(
        0, ge=0, description="epochs between measurements of the Hessian's dominant eigenvalue; 0: never"
    )
    stop_at_collapse: bool = Field(
        False,
        description=(
            "RobustDARTS's rule: stop when the eigenvalue grows, go back 4 epochs; needs watch-every 1"
        ),
    )
    evaluate_images: int | None = Field(
        None,
        ge=1,
        description=(
            "images (words) of the architecture's part that the mixture is measured on in each epoch; none: "
            "all of them"
        ),
    )
    bf16: bool = Field(False, description="compute in bfloat16 where that is safe: faster on recent GPUs")
    seed: int = Field(0, ge=0, description="of weights, order, augmentation, draws and the halves")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1")
    threads: int | None = Field(None, ge=1, description="CPU threads; none: torch decides")
    resume: bool = Field(False, description="continue the run in --out if there is one")
    overwrite: bool = Field(False, description="replace the run in --out if there is one")

    @classmethod
    def prepare(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Under what is asked for, what was published for this method on this space."""
        space = str(values.get("space", "darts"))
        method, data = (values.get(section, {}) for section in ("method", "data"))
        method, data = (
            {"name": section} if isinstance(section, str) else section for section in (method, data)
        )
        if isinstance(method, dict):
            method = {"name": "darts"} | method
            kinds = [
                kind for kind in models_in(cls.model_fields["method"].annotation) if issubclass(kind, Method)
            ]
            published = next(
                (
                    kind.on.get(space, {})
                    for kind in kinds
                    if kind.model_fields["name"].default == method["name"]
                ),
                {},
            )
            method = merge({"name": method["name"], **published}, method)
        if isinstance(data, dict):
            usual = ("text" if "path" in data else "grammar") if space == "recurrent" else "digits"
            data = {"name": usual} | data
            data = data if data["name"] in ("grammar", "text") else {"val": 0.5} | data
        return values | {"method": method, "data": data}

    @model_validator(mode="after")
    def _fits(self) -> Self:
        text, method, epochs = self.space == "recurrent", self.method, self.epochs or self.method.epochs
        if text != isinstance(self.data, Grammar | TextFolder):
            raise ValueError(
                f"space {self.space} and data {self.data.name} do not go together; text is for space "
                "recurrent, images for others"
            )
        if self.table and self.space != "nasbench201":
            raise ValueError("table holds results of NAS-Bench-201; give it with --space nasbench201")
        if self.stop_at_collapse and self.watch_every != 1:
            raise ValueError("stop_at_collapse needs the eigenvalue of every epoch; add --watch-every 1")
        if self.watch_every and (method.samples or not method.learns):
            raise ValueError(
                f"method {method.name} has no smooth loss in the architecture to watch; leave out watch_every"
            )
        if method.warmup_epochs >= epochs:
            raise ValueError(
                f"method {method.name} trains weights alone for {method.warmup_epochs} epochs and would "
                f"learn nothing else in {epochs}; "
                "lower --method.warmup-epochs or raise --epochs"
            )
        if not text and self.channels % method.partial:
            raise ValueError(
                f"channels = {self.channels} cannot be cut into {method.partial} parts; take a multiple, or "
                "--method.partial 1"
            )
        if self.space.startswith("darts") and self.cells is not None and self.cells < 3:
            raise ValueError(
                f"cells = {self.cells} are all reduction cells; take 3 or more, so that normal cells are "
                "searched, too"
            )
        return self

    def execute(self) -> int:
        """Search and write what was found."""
        if self.threads:
            torch.set_num_threads(self.threads)
        space = find_space(self.space)
        together = self.method.model_dump() | {"penalties": (*self.method.penalties, *self.penalties)}
        method = validate(type(self.method), together, "--penalties")
        refusal = method.refuse(space)
        if refusal:
            raise UserError(refusal)
        table = Table.read(self.table) if self.table else None
        if table:
            table.accuracies(self.dataset)  # refused now, not after the first epoch
        device = pick_device(self.device)
        costs = costs_of(method.penalties, space, device)
        task = self._task(space, method, device)
        searching = Searching(method, space, task, self.seed, self.epochs or method.epochs, costs)
        run = Run.start(self.out, self, resume=self.resume, overwrite=self.overwrite)
        if run.finished:
            print(f"{run.path} is finished already.")
        else:
            status = Loop(self, run, searching, table).run()
            if status:
                return status
        print(f"next: {retrain_command(run.path, self.space, self.data)}")
        return 0

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


class Loop:
    """A search from its current step to its end, or to a signal; metrics.jsonl is its memory."""

    def __init__(self, config: Search, run: Run, searching: Searching, table: Table | None):
        self.config, self.folder, self.searching, self.table = config, run, searching, table
        self.epoch, self.done = 0, 0  # pairs of batches of this epoch
        self.step = 0
        self.pending: list[Tensor] = []  # losses that the host has not looked at
        self.warned = False
        if (run.path / "state.pt").exists():
            self.load()
        run.forget_after(self.step)  # logged by what was killed before its checkpoint

    def run(self) -> int:
        """All epochs, then the choice (0); or up to a signal (130)."""
        task, epochs = self.searching.task, self.searching.epochs
        total = self.step - self.done + sum(task.steps(epoch) for epoch in range(self.epoch, epochs))
        introduce(self.searching)
        with stop_on_signal() as stop, progress("search", total, self.step) as advance:
            while self.epoch < epochs and self.collapsed() is None:
                self.train(stop, advance)
                self.log()
                self.check()
                if (
                    self.done >= task.steps(self.epoch) and not stop.requested
                ):  # else after --resume: it may take long
                    self.end_epoch()
                self.save()
                if stop.requested:
                    print(
                        f"stopped at step {self.step} of {total}; continue with the same command and --resume"
                    )
                    return 130
        self.finish()
        return 0

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
        """Look at the losses since the last look: one host synchronisation. Returns a note for the progress
        bar.

        Raises:
            UserError: one of them is not finite.
        """
        if not self.pending:
            return ""
        losses_S2, self.pending = torch.stack(self.pending).cpu(), []
        if not bool(losses_S2.isfinite().all()):
            self.diverged("loss is")
        of_weights, of_architecture = losses_S2.mean(0).tolist()
        point = {"architecture_loss": of_architecture} if self.searching.learning else {}
        self.folder.log(step=self.step, epoch=self.epoch, loss=of_weights, **point)
        return f"epoch {self.epoch + 1}  loss {of_weights:.3f}"

    def check(self) -> None:
        """The last update may have broken what is learned without a loss that shows it.

        Raises:
            UserError: a weight or a parameter of the architecture is not finite.
        """
        for what, tensors in (
            ("weights", self.searching.task.network.parameters()),
            ("architecture", self.searching.alphas.all()),
        ):
            sums = [tensor.detach().float().sum() for tensor in tensors]
            if sums and not bool(torch.stack(sums).isfinite().all()):
                self.diverged(f"{what} {'are' if what == 'weights' else 'is'}")

    def diverged(self, what: str) -> NoReturn:
        """Say when, and what to do."""
        raise UserError(
            f"The {what} not finite near step {self.step} (epoch {self.epoch + 1}); start again with "
            "--overwrite and a lower "
            f"--method.sgd.lr (now {self.searching.method.sgd.lr}). The last good checkpoint, if any, stays "
            f"in '{self.folder.path}'."
        )

    def end_epoch(self) -> None:
        """What the method does between epochs; then measure and log the current choice."""
        searching, method, config = self.searching, self.searching.method, self.config
        method.after_epoch(searching)
        genotype = method.genotype(searching)
        probabilities = method.probabilities(searching.space, searching.alphas)
        point: dict[str, Any] = {
            searching.task.quality: searching.measure(limit=config.evaluate_images),
            "skips": skips(genotype),
            "genotype": genotype.model_dump(mode="json"),
            "alphas": {
                kind: [[round(p, 5) for p in row] for row in values.tolist()]
                for kind, values in probabilities.items()
            },
        }
        if config.watch_every and (self.epoch + 1) % config.watch_every == 0:
            _, valid = next(searching.task.batches(self.epoch, 0))
            point["eigenvalue"] = searching.eigenvalue(valid)
        if self.table:
            point["true_accuracy"] = self.table.accuracy(genotype, config.dataset)
        self.folder.log(step=self.step, epoch=self.epoch, **point)
        self.epoch, self.done = self.epoch + 1, 0
        if self.epoch >= NOT_BEFORE and not self.warned:
            self.warn(genotype)

    def warn(self, genotype: Genotype) -> None:
        """Say it if the search seems to collapse; only methods that learn by gradient do."""
        concern = warning(genotype, self.searching.method) if self.searching.method.learns else None
        if concern:
            print(f"warning, after epoch {self.epoch}: {concern}")
            self.warned = True

    def epochs_logged(self) -> list[dict[str, Any]]:
        """What the ends of epochs logged."""
        return [point for point in read_lines(self.folder.path / "metrics.jsonl") if "genotype" in point]

    def collapsed(self) -> int | None:
        """The epoch to go back to, if the rule is asked for and says so."""
        if not self.config.stop_at_collapse:
            return None
        return epoch_to_return_to([point["eigenvalue"] for point in self.epochs_logged()])

    def finish(self) -> None:
        """Read the cell off, write and draw it."""
        searching, path, logged, config = self.searching, self.folder.path, self.epochs_logged(), self.config
        back = self.collapsed()
        if back is None:
            searching.at = At(searching.epochs - 1, searching.epochs)
            genotype = searching.method.final_genotype(searching)
        else:
            genotype = Genotype.model_validate(logged[back]["genotype"])
            print(
                f"The eigenvalue grew by more than {FACTOR}: stopped after epoch {len(logged)}, took the "
                f"cell of epoch {back + 1}."
            )
        write_json(path / "genotype.json", genotype.model_dump(mode="json"))
        draw(genotype, path / "cell")
        if searching.method.learns:
            alphas_over_time([point["alphas"] for point in logged], searching.space, path / "alphas.png")
        describe(genotype)
        if back is None:
            self.warn(genotype)
        if self.table:
            compare(genotype, self.table, config.dataset, config.table_budget, config.seed)
        self.folder.finish()
        print(f"written to {path}: genotype.json, cell.svg, cell.png")

    def save(self) -> None:
        """What --resume needs."""
        save_state(
            self.folder.path / "state.pt",
            {"epoch": self.epoch, "done": self.done, "step": self.step} | self.searching.state(),
        )

    def load(self) -> None:
        """Continue from state.pt.

        Raises:
            UserError: it is of another search.
        """
        path = self.folder.path / "state.pt"
        state = load_state(path)
        try:
            self.searching.load(state)
            self.epoch, self.done, self.step = (int(state[name]) for name in ("epoch", "done", "step"))
        except (KeyError, RuntimeError, ValueError, TypeError):
            raise UserError(
                f"Resume state '{path}' is not of this run; start again with --overwrite."
            ) from None
        print(
            f"resumed in epoch {self.epoch + 1} of {self.searching.epochs}"
            if self.epoch < self.searching.epochs
            else "resumed at the end"
        )


if __name__ == "__main__":
    main(Search)
