"""DARTS-'s skip connection beside every edge, which fades away (2021, arXiv:2009.01027)."""

from typing import Literal

import torch
from pydantic import Field

from engine.config import Config
from oneshot.axes.progress import Progress


class AuxiliarySkip(Config):
    """A skip connection beside the mixed operations of every edge, whose weight falls to 0."""

    start: float = Field(1.0, ge=0, description="weight in the first epoch")
    decay: Literal["linear", "cosine"] = Field("linear", description="how the weight falls with the epochs")

    def weight(self, progress: Progress) -> float:
        """Weight in an epoch."""
        if self.decay == "linear":
            return self.start * (1 - progress.passed)
        cosine = float(torch.cos(torch.tensor(torch.pi * progress.passed)))
        return self.start * 0.5 * (1 + cosine)
