"""The settings of a supernet's training, which a YAML recipe holds."""

from typing import Literal, Self

from pydantic import Field, model_validator

from engine.training import TrainingCommand
from ofa.initialisation import Scheme
from ofa.training.losses import SoftCrossEntropy
from ofa.training.phases import Phase
from ofa.training.sampling import Attentive, BatchLoss, Uniform
from ofa.training.sandwich import Sandwich


class Recipe(TrainingCommand):
    """What decides how a supernet, or one architecture alone, learns from images."""

    arch: str | None = Field(
        None,
        description=(
            "train this architecture alone, from labels, instead of a supernet: smallest, largest, a JSON "
            "file or JSON"
        ),
    )
    initialisation: Scheme = Field(
        "torch",
        description="first weights: torch's default (AttentiveNAS, AlphaNet), fan_out, or ofa's",
    )
    zero_gamma: bool = Field(
        True, description="a block that always has a shortcut starts as it: its last BatchNorm's scale is 0"
    )
    epochs: int = Field(40, ge=1, description="passes over the training images; phases have their own")
    phases: tuple[Phase, ...] = Field(
        (),
        description=(
            "progressive shrinking (OFA) instead of the sandwich rule: a list in a recipe such as "
            "ofa/ofa_mbv3"
        ),
    )
    sandwich: Sandwich = Field(
        Sandwich(), description="the step: who is trained, who teaches, who is regularised"
    )
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay a step of a running average of the weights, which is then evaluated and saved",
    )
    on_divergence: Literal["stop", "rollback"] = Field(
        "stop",
        description=(
            "if a loss or weight is not finite: stop, or go back to the last checkpoint (rollback) and go on "
            "with half the learning rate, at most five times"
        ),
    )
    evaluate_random: int = Field(
        2, ge=0, description="fixed random subnets evaluated beside the smallest and the largest"
    )
    calibration_images: int = Field(
        2000, ge=2, description="training images for the exact BatchNorm statistics of a subnet"
    )
    log_conflicts: int | None = Field(
        None,
        ge=1,
        description=(
            "steps between measurements of how the gradients of smallest, random and largest agree, as "
            "cosines in metrics.jsonl; none: never"
        ),
    )
    same_subnets: bool = Field(
        False,
        description=(
            "all processes draw the same random subnets in a step (candidates, where each judges them on its "
            "own images); off: each draws its own"
        ),
    )
    sync_bn: bool = Field(
        False, description="BatchNorm statistics are of all processes' images; needs --same-subnets"
    )

    @model_validator(mode="after")
    def _settings_go_together(self) -> Self:
        if self.phases and self.arch:
            raise ValueError(
                "phases shrink a supernet and arch trains one architecture alone; give one of them"
            )
        if self.phases and self.sync_bn:
            raise ValueError(
                "sync_bn is not for phases: the teacher's BatchNorm sees the images of its own process; "
                "leave it out"
            )
        step = self.sandwich
        if self.log_conflicts and not step.smallest:
            raise ValueError("log_conflicts compares the gradient of the smallest; add --sandwich.smallest")
        if self.phases and step.largest_first:
            raise ValueError("phases say themselves when the largest trains alone; leave out largest_first")
        if self.phases and not step.smallest:
            raise ValueError(
                "phases train what they open, the smallest like others; leave sandwich.smallest on"
            )
        if self.phases and (step.sampling != Uniform() or step.distillation != SoftCrossEntropy()):
            raise ValueError(
                "phases draw uniformly from what they open and distil by soft cross-entropy; leave sampling "
                "and distillation"
            )
        return self

    @property
    def all_epochs(self) -> int:
        """Passes over the training images, of all phases."""
        return sum(phase.epochs for phase in self.phases) or self.epochs

    @model_validator(mode="after")
    def _one_statistic_needs_one_architecture(self) -> Self:
        sampling = self.sandwich.sampling
        judged = isinstance(sampling, Attentive) and isinstance(sampling.judge, BatchLoss)
        # Without sync_bn that does no harm, and the released code of AttentiveNAS does it.
        if self.sync_bn and judged:
            raise ValueError(
                "sync_bn averages statistics of one architecture, but each process picks its own by the loss "
                "on its own images; judge by predicted"
            )
        if self.sync_bn and not (self.same_subnets or self.arch):
            raise ValueError(
                "sync_bn averages statistics of one architecture, but each process has its own; add "
                "--same-subnets"
            )
        return self
