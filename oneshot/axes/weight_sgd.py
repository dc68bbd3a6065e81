"""How a search trains the weights of its network: SGD with a cosine over the epochs."""

import math
from typing import Literal

from pydantic import Field

from engine.config import Config
from oneshot.axes.progress import Progress


class WeightSgd(Config):
    """Settings of the weights' optimiser."""

    lr: float = Field(0.025, gt=0, description="learning rate in the first epoch")
    lr_min: float = Field(0.001, ge=0, description="learning rate that the cosine ends at")
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(3e-4, ge=0, description="L2 on every weight")
    clip_norm: float | None = Field(
        5.0, gt=0, description="largest norm of the whole gradient; none: no clipping"
    )
    cosine_epochs: int | None = Field(None, ge=1, description="length of the cosine; none: the search's")
    after_cosine: Literal["stay", "restart", "swing"] = Field(
        "stay",
        description=(
            "after the end of the cosine: stay at lr_min; restart at lr, each cosine twice as long (SGDR, "
            "arXiv:1608.03983); swing back to lr and down again, as a cosine goes on"
        ),
    )

    def learning_rate(self, progress: Progress) -> float:
        """Learning rate of an epoch: a cosine from `lr` to `lr_min`, and what `after_cosine` says."""
        start, length = 0, self.cosine_epochs or progress.epochs
        # Each cosine begins where the one before ended, and is twice as long.
        while self.after_cosine == "restart" and progress.epoch >= start + length:
            start, length = start + length, 2 * length
        passed = (progress.epoch - start) / length
        if self.after_cosine != "swing":
            passed = min(passed, 1.0)
        return self.lr_min + (self.lr - self.lr_min) * 0.5 * (1 + math.cos(math.pi * passed))
