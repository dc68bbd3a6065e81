"""Flags of commands that loop over epochs (`engine.loop`)."""

import time

from pydantic import Field, PrivateAttr

from engine.command.cli import Command
from engine.config import Duration
from engine.run import Run
from engine.runs.saving import Saving
from engine.runs.tracking import check_trackers, open_trackers


class LoopCommand(Command):
    """A command whose work is an `EpochLoop`: when it stops and saves, and where its metrics go, too."""

    stop_after: Duration | None = Field(
        None,
        description=(
            "stop after this time, such as 3h50m, with a checkpoint that --resume continues; counted from "
            "the command's start; none: never"
        ),
    )
    checkpoint_every: Duration = Field(
        "15m",
        validate_default=True,
        description="a checkpoint after this time, too, and not only at the end of each epoch: 15m, 1h",
    )
    keep: int = Field(
        1,
        ge=1,
        description=(
            "checkpoints of ends of epochs to keep; if more than 1, they and the best one are in checkpoints/"
        ),
    )
    tensorboard: bool = Field(
        False, description="write TensorBoard events too (needs the extra of that name)"
    )
    mlflow: bool = Field(
        False,
        description="log to MLflow too, where MLFLOW_TRACKING_URI says (needs the extra of that name)",
    )
    # Made with the settings, so that reading the images counts: who has four hours has them for everything.
    _started: float = PrivateAttr(default_factory=time.monotonic)

    @property
    def saving(self) -> Saving:
        """When the loop saves and stops."""
        stop_at = None if self.stop_after is None else self._started + self.stop_after
        return Saving(stop_at, self.checkpoint_every, self.keep)

    def check_trackers(self) -> None:
        """Refuse a tracker whose package is missing, before a run folder is made.

        Raises:
            UserError: the optional package is not installed.
        """
        check_trackers(self.tensorboard, self.mlflow)

    def mirror(self, run: Run) -> None:
        """Let what a run logs go to the trackers that are asked for, too, unless it is finished."""
        if not run.finished:
            run.mirror_to(open_trackers(run.path, run.config, self.tensorboard, self.mlflow))
