"""Training a subnet on from the supernet's weights, with labels and the soft predictions of a teacher.

The subnet is the only architecture of a space of its own, so that it trains as an ordinary network does, with
the statistics of its own batches. Several subnets that are tuned together share images and teacher, and
nothing else: each has an optimiser and a run folder of its own, and ends as if it were tuned alone.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.compute.gradients import Backward, Passes
from engine.compute.precision import USUAL_PRECISION, autocast, precision_on, training_in
from engine.optim import SGD, Cosine, build_sgd, clip_gradients, learning_rate, set_learning_rate
from ofa.calibration import prepare, subnet_accuracy
from ofa.quantization import RoundedNetwork
from ofa.space.arch import Arch, largest, single_arch_space
from ofa.supernet import Supernet
from ofa.trained import TrainedSupernet, start_from
from ofa.training.losses import soft_cross_entropy
from ofa.training.teacher import largest_teacher

# Of the teacher's loss, beside 1 for that of the labels. On digits 0.5 and 1 were equal, 2 and 4 worse; a
# teacher that is better than the subnet, as one on CIFAR-10, was tried with 1 only.
TEACHER_WEIGHT = 1.0
# Where the run has no recipe of a training, as a converted checkpoint.
USUAL_BATCH = 64
TUNING_SGD = SGD(lr=0.01, warmup_epochs=1, schedule=Cosine())


def tuning_recipe(config: dict[str, Any]) -> dict[str, Any]:
    """What a tuning takes from the config.yaml of its run.

    That is images, batch size, threads, precision, rate and decay, and label smoothing.

    The rate is the supernet's own. A tenth of it, the usual one of fine-tuning, left subnets of digits one to
    two points worse: its weights are a compromise that a subnet has to leave.
    """
    found: dict[str, Any] = {
        name: config[name] for name in ("data", "batch_size", "precision", "threads") if name in config
    }
    if "sgd" in config:
        found["sgd"] = config["sgd"] | TUNING_SGD.model_dump(include={"warmup_epochs", "schedule"})
        # Phases have rates of their own; the last one's is that of the weights as they are.
        if config.get("phases"):
            found["sgd"]["lr"] = config["phases"][-1]["lr"]
    if "sandwich" in config:
        found["label_smoothing"] = config["sandwich"]["label_smoothing"]
    return found


def tuning_rate(sgd: SGD, step: int, steps: int, total: int) -> float:
    """The learning rate of a step.

    Args:
        sgd: the recipe.
        step: number of the step, from 0.
        steps: steps in an epoch.
        total: steps of the whole tuning.
    """
    # The warm-up takes no more than a tenth: one epoch of one would never reach the full rate.
    return learning_rate(sgd, step, total, min(round(sgd.warmup_epochs * steps), total // 10))


def single_network(supernet: Supernet, arch: Arch) -> Supernet:
    """A network of `arch` alone, with a copy of the weights that it has in `supernet`."""
    with torch.random.fork_rng(devices=[]):  # its first weights are drawn in vain
        network = Supernet(single_arch_space(supernet.space, arch), supernet.classes, supernet.channels)
    start_from(network, supernet, arch)
    return network


def tune_step(
    network: Supernet | RoundedNetwork,
    x: Tensor,
    y: Tensor,
    teacher_NK: Tensor | None,
    weight: float = TEACHER_WEIGHT,
    label_smoothing: float = 0.0,
    backward: Backward | None = None,
) -> Tensor:
    """Add the gradients of one step of a network that learns from labels and from a teacher.

    Args:
        network: of `single_network`, in train mode; or such a one that rounds to 8 bits.
        x: square images (N, C, side, side).
        y: classes (N,) or class probabilities (N, K).
        teacher_NK: logits of the teacher for these images; None: labels alone.
        weight: of the teacher's loss, beside 1 for that of the labels.
        label_smoothing: share of the labels that is spread over all classes.
        backward: runs the backward pass of the loss; None: gradients are added, and nothing else.

    Returns:
        The losses (2,), of labels and teacher, detached; without a teacher (1,).

    Example:
        network = single_network(supernet, arch)
        optimizer.zero_grad()
        tune_step(network, x, y, teacher(x))
        optimizer.step()
    """
    with autocast(x.device):
        logits = network(x, largest(network.space))
    losses = [F.cross_entropy(logits.float(), y, label_smoothing=label_smoothing)]
    if teacher_NK is not None:
        losses.append(weight * soft_cross_entropy(logits, teacher_NK))
    (backward or Passes().backward)(torch.stack(losses).sum())
    return torch.stack(losses).detach()


def tuned_accuracies(
    trained: TrainedSupernet, archs: Sequence[Arch], epochs: int, advance: Callable[[str], object]
) -> list[float]:
    """Validation accuracies in [0, 1] of subnets after a short tuning, whose weights are not kept.

    Args:
        trained: the run.
        archs: the subnets; they are tuned together.
        epochs: passes over the training images.
        advance: called after each step with a note.
    """
    recipe, data = tuning_recipe(trained.run.config), trained.data
    sgd = SGD.model_validate(recipe.get("sgd", TUNING_SGD))
    batch_size, smoothing = recipe.get("batch_size", USUAL_BATCH), recipe.get("label_smoothing", 0.0)
    networks = []
    for arch in archs:
        network = single_network(trained.supernet, arch).to(data.device)
        networks.append(network.to(memory_format=torch.channels_last))
    optimizers = [build_sgd(sgd, network) for network in networks]
    teacher = largest_teacher(trained.model, trained.supernet, data)
    steps, step = data.steps(batch_size), 0
    # As ofa.tune would train them.
    precision = precision_on(data.device, recipe.get("precision"), USUAL_PRECISION)
    with training_in(precision):
        for epoch in range(epochs):
            for x, y in data.train_batches(batch_size, epoch):
                taught = teacher(x)
                for network, optimizer in zip(networks, optimizers, strict=True):
                    set_learning_rate(optimizer, tuning_rate(sgd, step, steps, epochs * steps))
                    optimizer.zero_grad()
                    tune_step(network, x, y, taught, TEACHER_WEIGHT, smoothing)
                    clip_gradients(sgd, network)
                    optimizer.step()
                step += 1
                advance("")
    found = []
    for network in networks:
        subnet = prepare(network, largest(network.space), data, trained.model.calibration_images)
        found.append(subnet_accuracy(subnet, data.evaluation_batches("val")))
    return found
