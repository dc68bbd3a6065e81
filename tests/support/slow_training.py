"""ofa.train on digits, slow after 11 steps: what a test does at the first checkpoint comes before the end."""

import itertools
import time

from torch import Tensor

from engine.command.cli import main
from ofa.train import Train
from ofa.training.trainer import Trainer

_update, _steps = Trainer.update, itertools.count(1)


def _slow_update(self: Trainer, x: Tensor, y: Tensor) -> None:
    _update(self, x, y)
    if next(_steps) > 11:  # an epoch, at whose end there is a checkpoint
        time.sleep(0.3)


Trainer.update = _slow_update  # type: ignore[method-assign]
main(Train)
