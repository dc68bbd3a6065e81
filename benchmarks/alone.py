"""Train one network alone for a given CPU time, as a user would who has no supernet.

    python benchmarks/alone.py --config ofa/digits --arch selected.json --cpu-seconds 60 --out runs/alone
    python benchmarks/alone.py --mobilenet 300k --resolution 16 --cpu-seconds 60 --out runs/mobilenet

`benchmarks/worth.py` starts it. With `--arch` the network, its first weights (those of `--init` if it is
given) and each step are those of `ofa.train --arch`; with `--mobilenet` the network is torchvision's
MobileNetV3 (2019, arXiv:1905.02244), its width scaled to the MACs. All settings come from the recipe of the
supernet. The weights that were best on validation images count, and are then measured on test images:
result.json in the run folder.
"""

import math
import time
from bisect import bisect_right
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any, Self

import torch
import torch.nn.functional as F
import torchvision
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from engine.command.cli import main
from engine.compute.distributed import Ranks
from engine.compute.evaluation import accuracy
from engine.compute.macs import count_macs
from engine.config import Count
from engine.data.augment import resize
from engine.data.dataset import Data
from engine.errors import UserError
from engine.optim import build_sgd, clip_gradients, learning_rate, set_learning_rate
from engine.run import Run, write_json
from engine.seed import derive, torch_generator
from engine.training import Training
from ofa.calibration import CALIBRATION_BATCH, prepare
from ofa.initialisation import initialise
from ofa.space.arch import largest, single_arch_space
from ofa.space.published import find_arch
from ofa.space.space import load_space
from ofa.supernet import Supernet
from ofa.train import Train
from ofa.trained import open_source, start_from
from ofa.training.sandwich import label_step

EVALUATIONS = 10  # over a training; their CPU time is not taken from the training
WARMING_STEPS, TIMED_STEPS = 4, 12  # by which the time of an epoch is estimated
WIDTHS = [round(0.05 * i, 2) for i in range(1, 61)]  # width multipliers that are tried
NARROW = 0.25  # a width below this is taken only where no other last map fits the MACs


class Alone(Train):
    """Train the architecture of --arch, or a MobileNetV3 of --mobilenet MACs, for --cpu-seconds."""

    config: str | None = "ofa/digits"
    cpu_seconds: float = Field(gt=0, description="CPU time of the training; it decides the number of epochs")
    most_epochs: int = Field(300, ge=1, description="train no longer than so many epochs")
    mobilenet: Count | None = Field(None, description="MACs of a MobileNetV3, which replaces --arch")
    resolution: int = Field(224, ge=8, description="side of the MobileNetV3's images in pixels")

    @model_validator(mode="after")
    def _one_network(self) -> Self:
        if (self.arch is None) == (self.mobilenet is None):
            raise ValueError("one network is trained; give --arch or --mobilenet")
        return self

    def train(self, ranks: Ranks, device: torch.device) -> int:
        """Train, measure, and write result.json."""
        source, config = None, self
        if self.init:
            start, source = open_source(self.init, self.space)
            config = self.model_copy(update={"data": self.data.prepared_for(start.wanted)})
        data = config.load_images(ranks, device)
        config = config.fit_batch(data, ranks)
        network = self._network(data, source)
        if (self.out / "config.yaml").exists():
            epochs = Run(self.out).config["epochs"]  # a resumed run must not measure its time again
        else:
            epoch = seconds_of_an_epoch(config, deepcopy(network), data)
            epochs = max(1, min(self.most_epochs, int(self.cpu_seconds / epoch)))
        # Known only now, when the time of an epoch has been measured.
        every = max(1, epochs // EVALUATIONS)
        config = config.model_copy(update={"epochs": epochs, "evaluate_every": every})
        run = config.start(ranks, device)
        if run.finished:
            print(f"{run.path} is finished already.")
            return 0
        print(f"{epochs} epochs in {self.cpu_seconds:.0f} s of CPU time")
        return AloneTraining(config, run, network, data, ranks).run()

    def _network(self, data: Data, source: Supernet | None) -> nn.Module:
        classes, channels = len(data.classes), data.channels
        if self.mobilenet is not None:
            with torch.random.fork_rng(devices=[]):  # torch's initialisers draw from the global generator
                torch.manual_seed(derive(self.seed, "weights"))
                return mobilenet(self.mobilenet, self.resolution, classes, channels, self.sandwich.dropout)
        assert self.arch is not None
        space = source.space if source else load_space(self.space or "digits")
        arch = find_arch(space, self.arch)
        supernet = Supernet(single_arch_space(space, arch), classes, channels)
        draws = torch_generator("cpu", self.seed, "weights")
        initialise(supernet, self.initialisation, self.zero_gamma, draws)
        if source:
            start_from(supernet, source, arch)
        return supernet


class AloneTraining(Training):
    """The training of one network from labels, which keeps the weights that were best on validation."""

    def __init__(self, config: Alone, run: Run, network: nn.Module, data: Data, ranks: Ranks):
        super().__init__(config, run, network, data, ranks, config.epochs)
        self.config = config
        self.optimizer = build_sgd(config.sgd, network)
        self.average = None
        if config.ema is not None:
            average = get_ema_multi_avg_fn(config.ema)
            self.average = AveragedModel(network, multi_avg_fn=average)
        self.best: dict[str, Any] = {"val_accuracy": -1.0, "weights": {}}
        self.cpu_seconds, self.started = 0.0, 0.0  # of all steps, and since when a step is not counted yet
        self.restore()

    def update(self, x: Tensor, y: Tensor, /) -> None:
        """One optimiser step on one batch."""
        config, sgd = self.config, self.config.sgd
        warmup = round(sgd.warmup_epochs * self.steps)
        set_learning_rate(self.optimizer, learning_rate(sgd, self.step, self.total, warmup))
        self.optimizer.zero_grad()
        loss = add_gradients(config, self.network, x, y, self.step)
        clip_gradients(sgd, self.network)
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.network)
        now = time.process_time()
        self.cpu_seconds, self.started = self.cpu_seconds + now - self.started, now
        self.done(loss)

    def begin_epoch(self) -> None:
        """Evaluations lie between epochs: their time is not counted."""
        self.started = time.process_time()

    def evaluate(self, epoch: int, last: bool) -> None:
        """Keep the weights if they are the best so far on validation images."""
        network = self.network if self.average is None else self.average.module
        score = self._accuracy(network, "val")
        self.folder.log(step=self.step, epoch=epoch, arch="alone", val_accuracy=score)
        # Of equal ones the later, as in ofa.tune.
        if score >= self.best["val_accuracy"]:
            self.best = {"val_accuracy": score, "weights": deepcopy(network.state_dict())}

    def _accuracy(self, network: nn.Module, split: Any) -> float:
        """Accuracy with exact BatchNorm statistics, which ours and MobileNetV3 get from the same images."""
        images = self.config.calibration_images
        if isinstance(network, Supernet):
            arch = largest(network.space)
            plain, side = prepare(network, arch, self.data, images), arch.resolution
        else:
            plain, side = deepcopy(network), self.config.resolution
            batches = self.data.batches("train", CALIBRATION_BATCH, images)
            update_bn(((resize(x, side), y) for x, y in batches), plain)
            plain.eval()
        batches = self.data.evaluation_batches(split)
        return accuracy(plain, ((resize(x, side), y) for x, y in batches))

    def finish(self) -> None:
        """Measure the best weights on test images."""
        self.network.load_state_dict(self.best["weights"])
        config = self.config
        result = {
            "val_accuracy": self.best["val_accuracy"],
            "test_accuracy": self._accuracy(self.network, "test"),
            "macs": network_macs(self.network, self.data.channels, config.resolution),
            "epochs": self.epochs,
            "capped": self.epochs == config.most_epochs,
            "training_cpu_seconds": self.cpu_seconds,
        }
        write_json(self.folder.path / "result.json", result)
        print(result)
        super().finish()

    def metrics(self, losses: list[float]) -> tuple[dict[str, Any], str]:
        """The loss."""
        return {"loss": losses[0]}, f"loss {losses[0]:.3f}"

    def state(self) -> dict[str, Any]:
        """Beside the usual: the best weights so far and the time."""
        return super().state() | {"best": self.best, "cpu_seconds": self.cpu_seconds}

    def load(self, state: dict[str, Any]) -> None:
        """What `state` returned."""
        super().load(state)
        self.best, self.cpu_seconds = state["best"], state["cpu_seconds"]

    def checkpoint_objects(self) -> dict[str, Any]:
        """The average, too, if there is one."""
        return super().checkpoint_objects() | ({} if self.average is None else {"average": self.average})

    def exported_state_dict(self) -> dict[str, Tensor]:
        """The best weights so far."""
        return self.best["weights"] or self.network.state_dict()

    def divergence_hint(self, step: int) -> str:
        """A lower rate."""
        return f"a lower --sgd.lr (now {self.config.sgd.lr})"


def add_gradients(config: Alone, network: nn.Module, x: Tensor, y: Tensor, step: int) -> Tensor:
    """Add the gradients of one batch and return its loss (), detached."""
    if isinstance(network, Supernet):
        arch = largest(network.space)
        return label_step(network, arch, x, y, config.sandwich, (config.seed, step))[1]
    logits = network(resize(x, config.resolution))
    loss = F.cross_entropy(logits, y, label_smoothing=config.sandwich.label_smoothing)
    loss.backward()
    return loss.detach()


def seconds_of_an_epoch(config: Alone, network: nn.Module, data: Data) -> float:
    """CPU seconds of one epoch, from a few steps and the reading of their batches."""
    network = network.to(memory_format=torch.channels_last)
    optimizer = build_sgd(config.sgd, network)
    set_learning_rate(optimizer, 0.0)  # the time is wanted, not what is learned
    done, started = -WARMING_STEPS, 0.0
    for epoch in range(WARMING_STEPS + TIMED_STEPS):  # an epoch may have a single batch
        for x, y in data.train_batches(config.batch_size, epoch):
            if done == 0:
                started = time.process_time()
            optimizer.zero_grad()
            add_gradients(config, network, x, y, epoch)
            optimizer.step()
            done += 1
            if done == TIMED_STEPS:
                return (time.process_time() - started) / TIMED_STEPS * data.steps(config.batch_size)
    raise AssertionError("an epoch has at least one batch")


def mobilenet(macs: int, resolution: int, classes: int, channels: int, dropout: float) -> nn.Module:
    """The MobileNetV3, large or small, of the most MACs up to `macs`.

    The published network is for 224 px, where its five strides leave a map of 7 px. For smaller images the
    first strides become 1, until the last map has 4 px; or fewer where the network would be too narrow. Of
    the two families the one counts whose width is nearer to the published one, 1.

    Args:
        macs: multiply-accumulates of one image.
        resolution: side of the images in pixels.
        classes: outputs of the classifier.
        channels: input channels.
        dropout: before the classifier.

    Raises:
        UserError: even the narrowest has more MACs.
    """

    def build(family: str, last_map: int, width: float) -> nn.Module:
        make = getattr(torchvision.models, f"mobilenet_v3_{family}")
        network = make(num_classes=classes, dropout=dropout, width_mult=width)
        first = network.features[0][0]
        network.features[0][0] = nn.Conv2d(channels, first.out_channels, 3, 2, 1, bias=False)
        return _with_last_map(network, resolution, last_map)

    widths = {}
    for last_map in (4, 2, 1):
        for family in ("large", "small"):
            least = NARROW if last_map > 1 else WIDTHS[0]
            width = _widest(partial(build, family, last_map), least, macs, channels, resolution)
            if width is not None:
                widths[family] = width
        if widths:
            break
    if not widths:
        raise UserError(
            f"No MobileNetV3 at {resolution} px has {macs} MACs or fewer; compare with larger budgets."
        )
    family = min(widths, key=lambda name: abs(math.log(widths[name])))
    print(f"mobilenet_v3_{family}, width {widths[family]}, last map at least {last_map} px")
    return build(family, last_map, widths[family])


def _widest(
    build: Callable[[float], nn.Module], least: float, macs: int, channels: int, resolution: int
) -> float | None:
    """The largest width, `least` or more, whose network has at most `macs`; None if there is none."""

    def macs_of(width: float) -> int:
        with torch.device("meta"):  # MACs follow from shapes alone
            return network_macs(build(width), channels, resolution)

    widths = [width for width in WIDTHS if width >= least]
    # The narrowest first: most combinations fail there, and each network that is built takes 0.1 s.
    if macs_of(widths[0]) > macs:
        return None
    return widths[bisect_right(widths, macs, key=macs_of) - 1]


def _with_last_map(network: nn.Module, resolution: int, last_map: int) -> nn.Module:
    """Set the first strides to 1 until the last map has at least `last_map` pixels."""
    strided = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
    side = resolution / 2 ** len(strided)
    for layer in strided:
        if side >= last_map:
            break
        layer.stride, side = (1, 1), 2 * side
    return network


def network_macs(network: nn.Module, channels: int, resolution: int) -> int:
    """Multiply-accumulates of one image of a MobileNetV3, or of the one architecture of a supernet."""
    if isinstance(network, Supernet):
        return network.cost(largest(network.space))[0]
    device = next(network.parameters()).device
    return count_macs(network, torch.zeros(1, channels, resolution, resolution, device=device))


if __name__ == "__main__":
    main(Alone)
