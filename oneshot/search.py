"""Search a cell: alternate steps of shared weights and of the architecture, then read the cell off.

The method (`oneshot.methods`) decides which gradient, relaxation and penalties are used. The search is one
process on one device.
"""

import math
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from pydantic import Field, field_validator, model_validator

from engine.command.cli import main
from engine.command.looping import LoopCommand
from engine.command.start import say
from engine.compute.compiling import ABOUT_COMPILE
from engine.compute.device import device_facts, pick_device, use_threads
from engine.compute.graphs import ABOUT_GRAPHS, Graphs
from engine.compute.peak_memory import device_memory
from engine.compute.precision import (
    TrainingPrecision,
    describe_precision,
    precision_on,
    training_in,
)
from engine.config import Located, counted, merge, models_in, section, validate
from engine.data.dataset import Data
from engine.data.digits import Digits
from engine.data.sources import AnyData
from engine.data.text import Grammar, Text, TextFolder
from engine.errors import UserError
from engine.outside.names import expanded
from engine.run import Run
from engine.runs.lock import write_lock
from engine.training import UNDECIDED
from oneshot.aiming import cost_target, penalties_beside, refuse_aim
from oneshot.axes.operation_costs import operation_costs
from oneshot.axes.penalty import Penalty
from oneshot.chains.space import CHAIN
from oneshot.chains.target import parse_target
from oneshot.ending.outcome import retrain_command, retrain_recipe
from oneshot.ending.published import changes_of
from oneshot.ending.record import Change
from oneshot.language import NO_BF16
from oneshot.methods import MethodConfig
from oneshot.methods.darts import Darts
from oneshot.methods.method import Method
from oneshot.nasbench201.table import AccuracyTable, Dataset
from oneshot.objectives.building import (
    fit_batch,
    image_objective,
    read_data,
    usual_cells,
    usual_data,
    usual_space,
)
from oneshot.objectives.images import ImageObjective
from oneshot.objectives.memory import say_memory, search_memory
from oneshot.objectives.objective import Objective
from oneshot.objectives.text import TextObjective, TextSettings
from oneshot.search_loop import Monitoring, SearchLoop
from oneshot.searcher import Searcher
from oneshot.spaces.cells import settings_space
from oneshot.spaces.search_space import SearchSpace, find_search_space

# Measured on CPU: benchmarks/records/2026-11-30-precision.md.
BF16_TURNS = (
    "bf16: the gradient of the architecture turns by 6 to 18% of its length (tf32: 2 to 5%) while the loss "
    "moves by 0.02 to 0.12%, so another cell may be found"
)


class Search(LoopCommand):
    """Search a cell, or a chain of blocks, on images or text with a differentiable method.

    oneshot.retrain trains what it finds. Half of the training images (--data.val 0.5, whatever the data)
    train the architecture, the others shared weights. A method's published settings for the space are the
    defaults; --method.<setting> changes one, --penalties adds a loss (beta_decay, cost, ...) to any method
    that can bear it. docs/search.md says which method to take, and what the end of a search means.

    examples:
      python -m oneshot.search    # first-order DARTS on the embedded digits, under 10 minutes
      python -m oneshot.search --space chain32 --method proxyless --target 800k    # a chain of 0.8M MACs
      python -m oneshot.search --config oneshot/search_imagefolder --data.path photos --out runs/photos
      python -m oneshot.search --method pc_darts --penalties beta_decay \\
          --data npz --data.path cifar10.npz --out runs/pc
      python -m oneshot.search --method darts --method.order second --space nasbench201 \\
          --data npz --data.path cifar10.npz
      python -m oneshot.search --method gdas --space nasbench201 --table accuracy_200_epochs.csv \\
          --data npz --data.path cifar10.npz
      python -m oneshot.search --space proxyless --method proxyless --target 80ms \\
          --latency-table latency/phone.json --data imagefolder --data.path imagenet --data.size 224
      python -m oneshot.search --space recurrent --data text --data.path ptb --out runs/cell
    """

    main_flags: ClassVar[tuple[str, ...]] = (
        "--method.name",
        "--space",
        "--data.name",
        "--data.path",
        "--penalties",
        "--epochs",
        "--batch-size",
        "--out",
        "--device",
        "--resume",
    )

    config: str | None = Field(None, description="recipe: a YAML file, or a packaged name")
    out: Path = Field(Path("runs/search"), description="run folder to write")
    method: MethodConfig = Field(Darts(), description="the search method")
    space: str = Field(
        "darts",
        description=(
            "darts, darts_s1 to darts_s4, nasbench201, recurrent; chains of blocks: proxyless, fbnet, "
            "chain32; or a YAML file, of a chain or of cells with operations of your own. Methods for chains "
            "(proxyless, proxyless_r, fbnet) search chain32 by default, or their own on large images"
        ),
    )
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
    channels: int | None = Field(
        None, ge=2, description="width of the first cells of the search network; none: the method's"
    )
    cells: int | None = Field(
        None, ge=1, description="how many; none: 8; in space nasbench201 in each of three stages, none: 5"
    )
    text: TextSettings = Field(TextSettings(), description="the search network of space recurrent")
    target: str | None = Field(
        None,
        description=(
            "cost that a chain of blocks ends at: 100M (MACs), '4M params', or 15ms with --latency-table; "
            "the weight of the cost is found by itself"
        ),
    )
    latency_table: Located | None = Field(
        None, description="what python -m predictors.measure --space SPACE wrote, for a target in ms"
    )
    table: Located | None = Field(
        None, description="NAS-Bench-201 results: log the true accuracy of the current choice in each epoch"
    )
    dataset: Dataset = Field("cifar10", description="which of the table's data sets")
    table_budget: int = Field(
        100, ge=1, description="look-ups that random search and evolution get, to compare with"
    )
    watch_every: int = Field(
        0, ge=0, description="epochs between measurements of the Hessian's largest eigenvalue; 0: never"
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
            "images (words) of the architecture's part that the search network is measured on in each "
            "epoch; none: all of them"
        ),
    )
    precision: TrainingPrecision | None = Field(
        None,
        description=(
            "what layers compute in: float32, tf32 or bf16, which turns the architecture's gradient; none: "
            "tf32 on a GPU that has it, else float32. Measurements are in float32"
        ),
    )
    graphs: Graphs = Field("auto", description=ABOUT_GRAPHS)
    compile: bool = Field(False, description=ABOUT_COMPILE)
    seed: int = Field(0, ge=0, description="seed of weights, order, augmentation, draws and the halves")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1")
    threads: int | None = Field(None, ge=1, description="CPU threads; none: torch decides")
    resume: bool = Field(False, description="continue the run in --out if there is one")
    overwrite: bool = Field(False, description="replace the run in --out if there is one")

    @classmethod
    def prepare(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Put the settings that were published for this method and space under those that are asked for."""
        method, data = section(values, "method"), section(values, "data")
        kind = cls._method_kind(method.get("name", "darts")) if isinstance(method, dict) else Darts
        asked = values.get("space")
        space = usual_space(kind, data) if asked is None else str(asked)
        # A file is stored absolute, since config.yaml may be replayed in another folder.
        if space.endswith((".yaml", ".yml")):
            space = str(expanded(Path(space)).absolute())
        if isinstance(method, dict):
            method = {"name": "darts"} | method
            # The order is: the class's defaults, then what was published, then what is asked for. A space of
            # one's own operations takes the settings of its base.
            published = dict(kind.published.get(settings_space(space), {}))
            method = merge({"name": method["name"], **published}, method)
        if isinstance(data, dict):
            data = {"name": usual_data(space, data)} | data
            # Half of the images train the architecture. A text comes with a validation text for that.
            if data["name"] not in ("grammar", "text"):
                data = {"val": 0.5} | data
        return values | {"space": space, "method": method, "data": data}

    @classmethod
    def _method_kind(cls, name: Any) -> type[Method]:
        """The method of that name; an unknown name, which is refused later, counts as Darts."""
        for kind in models_in(cls.model_fields["method"].annotation):
            if issubclass(kind, Method) and kind.model_fields["name"].default == name:
                return kind
        return Darts

    @field_validator("target")
    @classmethod
    def _readable(cls, text: str | None) -> str | None:
        if text is not None:
            parse_target(text)
        return text

    @property
    def width(self) -> int:
        """Channels of the first cells."""
        return self.channels or self.method.channels

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        text = self.space == "recurrent"
        if text != isinstance(self.data, Grammar | TextFolder):
            raise ValueError(
                f"space {self.space} and data {self.data.name} do not go together; text is for space "
                "recurrent, images for others"
            )
        if text and self.precision == "bf16":
            raise ValueError(NO_BF16)
        if self.table and self.space != "nasbench201":
            raise ValueError("table holds results of NAS-Bench-201; give it with --space nasbench201")
        parts = () if text else self.method.channel_parts
        if any(self.width % part for part in parts):
            # Later stages have parts of their own, which --method.partial leaves as they are.
            remedy = ", or --method.partial 1" if len(parts) == 1 else ""
            raise ValueError(
                f"channels = {self.width} cannot be cut into {' and '.join(map(str, parts))} parts; "
                f"take a multiple of {math.lcm(*parts)}{remedy}"
            )
        on_darts = settings_space(self.space).startswith("darts")
        if on_darts and self.cells is not None and self.cells < 3:
            raise ValueError(
                f"cells = {self.cells} are all reduction cells; take 3 or more, so that normal cells are "
                "searched, too"
            )
        return self

    @model_validator(mode="after")
    def _schedule_fits(self) -> Self:
        method, epochs = self.method, self.epochs or self.method.epochs
        if self.stop_at_collapse and self.watch_every != 1:
            raise ValueError("stop_at_collapse needs the eigenvalue of every epoch; add --watch-every 1")
        if self.watch_every and not method.has_eigenvalue:
            raise ValueError(
                f"method {method.name} has no smooth loss in the architecture to watch; leave out watch_every"
            )
        shortest = method.shortest_stage(epochs)
        if shortest == 0:
            raise ValueError(f"epochs = {epochs} are fewer than the stages of {method.name}; raise --epochs")
        if method.warmup_epochs >= shortest:
            stage = "" if shortest == epochs else f", {shortest} in a stage"
            raise ValueError(
                f"method {method.name} trains weights alone for {counted(method.warmup_epochs, 'epoch')} "
                f"and would learn nothing else in {epochs}{stage}; lower --method.warmup-epochs or raise "
                "--epochs"
            )
        return self

    def execute(self) -> int:
        """Search and write what was found."""
        with write_lock(self.out):
            return self._search()

    def _search(self) -> int:
        use_threads(self.threads)
        method = self._method_with_penalties()
        space = method.offered(find_search_space(self.space))
        # Everything a user can get wrong is refused before the folder is made.
        self.check_trackers()
        refusal = method.refuse(space) or refuse_aim(space, method, self.target, self.latency_table)
        if CHAIN in space.cells:
            for flag, value in (("cells", self.cells), ("channels", self.channels)):
                if value is not None:
                    refusal = f"--{flag} is for cells; space {space.name} has widths and layers of its own."
        if refusal:
            raise UserError(refusal)
        table = AccuracyTable.read(self.table) if self.table else None
        if table:
            table.accuracies(self.dataset)  # a missing data set is refused now, not after the first epoch
        # Asked before images are read, which may take a minute.
        before = Run(self.out)
        continues = before.check(self, resume=self.resume, overwrite=self.overwrite, undecided=UNDECIDED)
        if continues and before.finished:
            print(f"{self.out} is finished already.")
            return self._say_next()
        if method.chains is not None and self.space == usual_space(type(method), dict(self.data)):
            print(f"space {self.space} is the default of method {method.name}, which is for chains of blocks")
        device = pick_device(self.device)
        precision = precision_on(device, self.precision, "tf32", cpu_has_bf16=True)
        said = describe_precision(device, precision, self.precision, "tf32")
        if said or precision == "bf16":
            print(said or BF16_TURNS)
        # Every step of a search has the same shapes.
        with training_in(precision, static_shapes=True):
            data = read_data(self.data, device, self.seed)
            asked = self.batch_size or method.batch_size
            fitting = fit_batch(asked, data, method)
            # config.yaml then records the batch that is used, so a resumed run has the same one.
            config = self if fitting == asked else self.model_copy(update={"batch_size": fitting})
            return config._search_on(device, precision, data, space, method, table)

    def _search_on(
        self,
        device: torch.device,
        precision: TrainingPrecision,
        data: Data | Text,
        space: SearchSpace,
        method: Method,
        table: AccuracyTable | None,
    ) -> int:
        """Search in a run folder that is started or continued here; return the exit status."""
        objective = self._objective(data, space, method, device)
        if isinstance(objective, ImageObjective):
            needed = search_memory(method, space, objective, self.evaluate_images)
            # A chain has widths of its own, which no flag changes.
            channels = None if CHAIN in space.cells else self.width
            say_memory(needed, device_memory(device), channels, objective.data.size, method.partial)
        image = objective.image if isinstance(objective, ImageObjective) else None
        costs = operation_costs(method.penalties, space, device, image)
        epochs = self.epochs or method.epochs
        target = cost_target(space, method, objective, epochs, self.target, self.latency_table)
        searcher = Searcher(method, space, objective, self.seed, epochs, costs, target)
        facts = device_facts(device, precision)
        run = Run.start(self.out, self, resume=self.resume, overwrite=self.overwrite, facts=facts)
        self.mirror(run)
        monitoring = Monitoring(
            evaluate_images=self.evaluate_images,
            watch_every=self.watch_every,
            stop_at_collapse=self.stop_at_collapse,
            table=table,
            dataset=self.dataset,
            table_budget=self.table_budget,
            changes=self._changes(method),
            recipe=retrain_recipe(self.space, self.data),
        )
        loop = SearchLoop(run, searcher, monitoring)
        # After a resumed search took up its state, which a graph must not see replaced.
        searcher.use_graphs(self.graphs)
        if self.compile:
            searcher.compile()
        loop.saving = self.saving
        return loop.run() or self._say_next()

    def _changes(self, method: Method) -> tuple[Change, ...]:
        """Settings that differ from the method's own on this space."""
        flags = {
            "epochs": self.epochs or method.epochs,
            "batch_size": self.batch_size or method.batch_size,
            "channels": self.width,
        }
        cells = self.method.cells or usual_cells(settings_space(self.space))
        text, own_text = self.text.model_dump(mode="json"), TextSettings().model_dump(mode="json")
        others = {"cells": (cells, self.cells or cells), "text": (own_text, text)}
        return changes_of(method, self.space, flags, others)

    def _say_next(self) -> int:
        say(f"next: {retrain_command(self.out, self.space, self.data)}")
        return 0

    def _method_with_penalties(self) -> Method:
        """The method, its own penalties and those beside it together."""
        # Validated again together: a penalty may not fit the method's relaxation.
        penalties = penalties_beside(self.method.penalties, self.penalties, self.target)
        values = self.method.model_dump() | {"penalties": penalties}
        return validate(type(self.method), values, "--penalties")

    def _objective(
        self, data: Data | Text, space: SearchSpace, method: Method, device: torch.device
    ) -> Objective:
        batch_size = self.batch_size or method.batch_size
        if isinstance(data, Text):
            return TextObjective(data, self.text, batch_size, self.seed, device)
        cells = self.cells or method.cells or usual_cells(settings_space(space.name))
        return image_objective(space, method, data, self.width, cells, batch_size, self.seed)


if __name__ == "__main__":
    main(Search)
