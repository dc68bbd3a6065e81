"""Train the network of a genotype from scratch: what a search found, or a published cell.

DARTS: Differentiable Architecture Search (2019, arXiv:1806.09055), evaluation on CIFAR and ImageNet; the
recipes in configs/oneshot/ hold its settings. Differs: the learning rate falls in every step instead of every
epoch, a few training images are held out for validation, and the last, incomplete batch of an epoch is left
out.
"""

import shlex
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from engine.command.cli import main
from engine.command.start import say
from engine.compute.compiling import ABOUT_COMPILE, compile_parts, eagerly
from engine.compute.distributed import Ranks, join_batch_norms_2d
from engine.compute.evaluation import BYTES_OF_CELLS, confusion
from engine.compute.gradients import GradientAverage
from engine.compute.graphs import ABOUT_GRAPHS, GraphedStep, Graphs, graphed_step, steady
from engine.compute.precision import TrainingPrecision, autocast
from engine.config import counted, format_count
from engine.data.dataset import Data, Split
from engine.data.digits import Digits
from engine.data.sources import AnyData
from engine.data.text import Grammar, TextFolder, load_text
from engine.errors import UserError
from engine.model import write_model
from engine.optim import SGD, Cosine, build_sgd, clip_gradients, learning_rate, set_learning_rate
from engine.plot.confusion import write_confusion
from engine.run import Run
from engine.seed import derive
from engine.statistics import describe_confusion, overall_accuracy
from engine.training import Training, TrainingCommand, fitting_columns
from oneshot.chains.genotype import ChainGenotype, published_chains
from oneshot.language import NO_BF16, Language, LanguageSettings
from oneshot.language_training import train_language
from oneshot.networks.final import FinalNetwork
from oneshot.networks.final_nasbench201 import FinalNasBench201Network
from oneshot.spaces.genotype import Genotype
from oneshot.spaces.read_genotype import find_genotype, published_genotypes
from oneshot.trained import (
    AUXILIARY,
    DEFAULT_RUN,
    NetworkModel,
    NetworkSize,
    build_network,
    network_cost,
    network_model,
)

# The settings of images would hardly train a recurrent cell: 30 epochs, and no rate of 20.
TEXT_RECIPES = {"text": "oneshot/retrain_ptb", "grammar": "oneshot/retrain_grammar"}


class Retrain(TrainingCommand):
    """Train the network of a genotype, of cells or a chain of blocks, from scratch; or a recurrent cell.

    A recipe (--config) holds the settings; flags change single ones. --genotype is a published name
    (DARTS_V2, PC_DARTS_cifar, fbnet_c, proxyless_mobile, ...), a file, the folder of a finished search, or a
    genotype written down as the reference codes print it. A chain has widths of its own, and neither an
    auxiliary head nor drop-path.

    examples:
      python -m oneshot.retrain    # a small network on the embedded digits
      python -m oneshot.retrain --config oneshot/retrain_cifar --genotype DARTS_V2 \\
          --data.path cifar10.npz --out runs/darts_v2
      python -m oneshot.retrain --config oneshot/retrain_cifar --genotype runs/search \\
          --data.path cifar10.npz --out runs/found
      python -m oneshot.retrain --genotype DARTS_V2_recurrent --data text --data.path ptb --out runs/ptb
      python -m oneshot.retrain --config oneshot/retrain_chain --genotype proxyless_mobile \\
          --data.path imagenet --out runs/proxyless
      torchrun --nproc-per-node 8 -m oneshot.retrain --config oneshot/retrain_imagenet \\
          --data.path imagenet --out runs/imagenet
    """

    main_flags: ClassVar[tuple[str, ...]] = (
        "--config",
        "--genotype",
        "--data.name",
        "--data.path",
        "--epochs",
        "--batch-size",
        "--out",
        "--device",
        "--resume",
        "--overwrite",
    )

    module: ClassVar[str] = "oneshot.retrain"
    usual_precision: ClassVar[TrainingPrecision] = "tf32"
    cpu_has_bf16: ClassVar[bool] = True
    static_shapes: ClassVar[bool] = True
    config: str | None = Field(
        "oneshot/retrain_digits",
        description=(
            "recipe: a YAML file, or a packaged name: oneshot/retrain_cifar. On text another one is usual: "
            "oneshot/retrain_ptb; on the grammar oneshot/retrain_grammar"
        ),
    )
    out: Path = Field(DEFAULT_RUN, description="run folder to write")
    genotype: str = Field(
        "DARTS_V2",
        description="a published name, a file, a folder of a finished search, or the genotype itself",
    )
    data: AnyData = Field(Digits(), description="the images; text for a recurrent cell")  # type: ignore[assignment]
    network: NetworkSize = Field(NetworkSize(), description="the size of the network")
    language: LanguageSettings = Field(
        LanguageSettings(),
        description="the training of a recurrent cell, beside epochs and batch_size (its columns of text)",
    )
    sgd: SGD = Field(
        SGD(
            lr=0.025,
            nesterov=False,
            weight_decay=3e-4,
            decay_all=True,
            clip_value=None,
            clip_norm=5,
            warmup_epochs=0,
            schedule=Cosine(),
        ),
        description="the optimiser and its learning rate",
    )
    auxiliary: float = Field(0.4, ge=0, description="weight of the auxiliary head's loss; 0: no such head")
    drop_path: float = Field(
        0.2,
        ge=0,
        lt=1,
        description="probability that an edge is left out for an image, reached linearly at the end",
    )
    sync_bn: bool = Field(False, description="BatchNorm statistics are of all processes' images")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the labels spread over all classes")
    precision: TrainingPrecision | None = Field(
        None,
        description=(
            "what layers compute in: float32, tf32 or bf16 (not for a recurrent cell); none: "
            "tf32 on a GPU that has it, else float32. Evaluation is in float32"
        ),
    )

    graphs: Graphs = Field("auto", description=ABOUT_GRAPHS)
    compile: bool = Field(False, description=ABOUT_COMPILE)

    @classmethod
    def usual_recipe(cls, given: dict[str, Any]) -> str | None:
        """That of digits, or of the text that is named."""
        data = given.get("data")
        name = data.get("name") if isinstance(data, dict) else None
        return TEXT_RECIPES.get(str(name)) or super().usual_recipe(given)

    def train(self, ranks: Ranks, device: torch.device) -> int:
        """Train as rank `ranks.rank` on `device`."""
        if self.sync_bn and self.compile and ranks.size > 1:
            raise UserError(
                "--sync-bn exchanges statistics in each BatchNorm, for which compiled parts cannot wait; "
                "leave out --compile or --sync-bn."
            )
        genotype = find_genotype(self.genotype)
        config = self
        names = [*published_genotypes(), *published_chains()]
        if self.genotype.lower() not in {name.lower() for name in names}:
            # The file or folder that was named may change: config.yaml replays the run without it.
            config = self.model_copy(update={"genotype": genotype.model_dump_json()})
        if isinstance(genotype, Genotype) and genotype.space == "recurrent":
            return config.train_on_text(genotype, ranks, device)
        if isinstance(self.data, Grammar | TextFolder):
            what = "chain of blocks"
            if isinstance(genotype, Genotype):
                what = f"cell of space {genotype.space}"
            raise UserError(
                f"A {what} reads images, not text; name some with --data, or give a recurrent genotype."
            )
        if config.finished_before(ranks):
            return config.say_finished()
        data = self.load_images(ranks, device)
        config = config.fit_batch(data, ranks)
        model = network_model(genotype, self.network, data)
        with torch.random.fork_rng(devices=[]):  # torch's initialisers draw from the global generator
            torch.manual_seed(derive(self.seed, "weights"))
            network = build_network(model, self.auxiliary > 0)
        run = config.start(ranks, device)
        if ranks.first:
            write_model(run.path / "model.json", model, "genotype")
        training = Retraining(config, run, network, data, ranks, model)
        training.introduce()
        return training.run() or config.say_next()

    def say_finished(self) -> int:
        """Say that there is nothing left to train."""
        print(f"{self.out} is finished already.")
        return self.say_next()

    def say_next(self) -> int:
        """Print the command that comes after a retraining."""
        say(f"next: python -m export.onnx --run {shlex.quote(str(self.out))}")
        return 0

    def train_on_text(self, genotype: Genotype, ranks: Ranks, device: torch.device) -> int:
        """Train a recurrent cell."""
        if not isinstance(self.data, Grammar | TextFolder):
            raise UserError(
                "A recurrent cell reads text, not images; add --data text --data.path FOLDER, or --data "
                "grammar to try it."
            )
        if ranks.size > 1:
            raise UserError(
                "A recurrent cell is trained by one process; start it with python -m instead of torchrun."
            )
        if self.precision == "bf16":
            raise UserError(NO_BF16)
        if self.finished_before(ranks):
            return self.say_finished()
        text = load_text(self.data)
        changes = "a recurrent cell reads windows of changing length"
        graphed_step(self.graphs, device, changes)
        if self.compile:
            print(f"the network is not compiled: {changes}")
        batch = fitting_columns(self.batch_size, text.splits["train"])
        run = self.model_copy(update={"batch_size": batch}).start(ranks, device)
        settings = Language(**self.language.model_dump(), epochs=self.epochs, batch=batch)
        status = train_language(run, genotype, text, settings, self.seed, device, self.saving)
        return status or self.say_next()


class Retraining(Training):
    """The training of a genotype's network, on labels alone."""

    def __init__(
        self,
        config: Retrain,
        run: Run,
        network: torch.nn.Module,
        data: Data,
        ranks: Ranks,
        model: NetworkModel,
    ):
        super().__init__(config, run, network, data, ranks, config.epochs)
        self.config, self.model = config, model
        self.optimizer = build_sgd(config.sgd, self.network)
        self.gradients = GradientAverage(self.network.parameters(), ranks)
        if config.sync_bn and ranks.size > 1:
            join_batch_norms_2d(self.network)
        self.draws = torch.Generator(data.device)  # of drop-path
        # In float64, of which 1 - drop has the bits that it has in Python. Only a graph reads it.
        self.drop = torch.zeros((), dtype=torch.double)
        self.graph: GraphedStep | None = None  # launches the steps; None: they run eagerly
        self.restore()
        self.use_graphs(config.graphs)
        if config.compile and isinstance(network, FinalNetwork | FinalNasBench201Network):
            compile_parts(network.compiled_parts())

    def use_graphs(self, graphs: Graphs) -> None:
        """Launch steps as graphs from now on, where that is wanted and possible."""
        device = self.data.device
        several = "several processes average their gradients" if self.ranks.size > 1 else None
        self.graph = graphed_step(graphs, device, several, [self.draws])
        if self.graph is not None:
            steady(self.optimizer, device)
            self.drop = self.drop.to(device)

    def introduce(self) -> None:
        """Print what is trained on what."""
        macs, params = network_cost(self.network, self.model)
        name = self.config.genotype if len(self.config.genotype) < 40 else "given"
        size = f"{counted(self.config.network.cells, 'cell')}, {self.config.network.channels} channels"
        if isinstance(self.model.genotype, ChainGenotype):
            size = f"chain of space {self.model.genotype.space.name}"
        print(f"genotype {name}: {size}, {format_count(params)} parameters, {format_count(macs)} MACs")
        self.config.introduce(self.data)

    def update(self, x: Tensor, y: Tensor, /) -> None:
        """One optimiser step on one batch."""
        config, sgd = self.config, self.config.sgd
        warmup = round(sgd.warmup_epochs * self.steps)
        # In every step; the published codes set it once in every epoch.
        set_learning_rate(self.optimizer, learning_rate(sgd, self.step, self.total, warmup))
        # Seeded here, outside of what a graph repeats.
        self.draws.manual_seed(derive(self.ranks.seed(config.seed), "drop path", self.step))
        # The probability rises from 0 with the epochs, as published.
        drop = config.drop_path * self.epoch / self.epochs
        if self.graph is None:
            self.done(self._move(x, y, drop))
        else:
            # In the first epoch nothing is drawn, which is another graph.
            drops = drop > 0

            def recorded(x: Tensor, y: Tensor, drop: Tensor) -> Tensor:
                return self._move(x, y, drop if drops else 0.0)

            self.done(self.graph.run(drops, recorded, (x, y, self.drop.fill_(drop))))

    def _move(self, x: Tensor, y: Tensor, drop: float | Tensor) -> Tensor:
        """The step at the optimiser's learning rate; returns the losses."""
        config = self.config
        self.optimizer.zero_grad()
        # 1. Forward: the logits, and those of the auxiliary head.
        with autocast(x.device):
            outputs = self._forward(x, drop)
        # 2. The losses in float32.
        entropies = []
        for logits in outputs:
            entropies.append(F.cross_entropy(logits.float(), y, label_smoothing=config.label_smoothing))
        losses = torch.stack(entropies)
        # The auxiliary head only helps to train: its loss weighs less.
        total = losses[0] + config.auxiliary * losses[1:].sum()
        self.gradients.last_backward(total)
        # 3. One update, with the gradient of all ranks' images.
        losses = self.gradients.finish(losses.detach())
        clip_gradients(config.sgd, self.network)
        self.optimizer.step()
        return losses

    def _forward(self, x: Tensor, drop: float | Tensor) -> tuple[Tensor, ...]:
        """The logits, and those of the auxiliary head if there is one."""
        if isinstance(self.network, FinalNetwork):
            outputs = self.network(x, drop, self.draws)
        else:
            outputs = self.network(x)
        return outputs if isinstance(outputs, tuple) else (outputs,)

    def metrics(self, losses: list[float]) -> tuple[dict[str, Any], str]:
        """The loss, and that of the auxiliary head if there is one."""
        return dict(zip(("loss", "auxiliary_loss"), losses, strict=False)), f"loss {losses[0]:.3f}"

    def divergence_hint(self, step: int) -> str:
        """A lower rate."""
        return f"a lower --sgd.lr (now {self.config.sgd.lr}) or a longer --sgd.warmup-epochs"

    def exported_state_dict(self) -> dict[str, Tensor]:
        """The weights without the auxiliary head."""
        state = self.network.state_dict()
        return {name: tensor for name, tensor in state.items() if not name.startswith(AUXILIARY)}

    def evaluate(self, epoch: int, last: bool) -> None:
        """Validation accuracy, at the end also that on test images.

        The first rank evaluates, with its BatchNorm statistics.
        """
        if not self.ranks.first:
            return
        splits: tuple[Split, ...] = ("val", "test") if last else ("val",)
        classes = self.data.classes
        point, said = {}, []
        # Running statistics, no drop-path, no auxiliary head.
        self.network.eval()
        for split in splits:
            batches = self.data.evaluation_batches(split, bytes_a_pixel=BYTES_OF_CELLS)
            with eagerly():
                confusion_KK = confusion(self.network, batches, len(classes))
            point[f"{split}_accuracy"] = overall_accuracy(confusion_KK)
            name = "validation" if split == "val" else split
            said.append(f"{describe_confusion(confusion_KK, classes)}, on {name} images")
            if last:
                path = self.folder.path / "confusion" / split
                write_confusion(path, f"{name} images", confusion_KK, classes)
        self.network.train()
        self.score = point["val_accuracy"]
        self.folder.log(step=self.step, epoch=epoch, **point)
        if last:
            print("\n".join(said))


if __name__ == "__main__":
    main(Retrain)
