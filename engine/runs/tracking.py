"""Mirrors of a run's metrics in other programs: TensorBoard and MLflow.

metrics.jsonl stays the source. A tracker gets the same values while the run goes on, and a run that is
resumed continues in the same place.
"""

import json
import os
import sys
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from engine.command.install import install_command
from engine.errors import UserError
from engine.outside.documents import MOST_JSON_BYTES, parse_json, read_text
from engine.runs.writing import atomic

EXPERIMENT = "ofa-toolkit"  # of MLflow, unless MLFLOW_EXPERIMENT_NAME says otherwise
LONGEST_PARAMETER = 6000  # characters that MLflow stores of a setting


class Tracker(Protocol):
    """Somewhere that the metrics of a run go, beside metrics.jsonl."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Write values by their names, such as `largest/val_accuracy`, at a step of the training."""

    def finish(self) -> None:
        """Called once, when the run has reached its end."""


class TensorBoardTracker:
    """TensorBoard events in the run's folder tensorboard/."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter  # `check_trackers` has seen that it is there

        self._writer = SummaryWriter(folder / "tensorboard")

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Write a point of each curve."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def finish(self) -> None:
        """Write what is still in memory."""
        self._writer.flush()


class MLflowTracker:
    """A run of MLflow, in the store that MLFLOW_TRACKING_URI names, or in MLflow's default store.

    Args:
        folder: the run folder. mlflow.json in it says where MLflow's run is, so that --resume goes on there.
        config: settings of the run, section by section; they become MLflow's parameters.

    Raises:
        UserError: the store cannot be used, or no longer has the run.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        import mlflow  # here, since it takes seconds and most runs do without
        from mlflow.exceptions import MlflowException

        self._told = False
        note = folder / "mlflow.json"
        try:
            if note.exists():
                found = parse_json(read_text(note, MOST_JSON_BYTES))
                self._client = mlflow.MlflowClient(found["tracking_uri"])
                self._run = str(found["run_id"])
                self._client.update_run(self._run, status="RUNNING")
            else:
                where = mlflow.get_tracking_uri()
                self._client = mlflow.MlflowClient(where)
                self._run = self._new_run(folder.resolve().name, config)
                found = {"run_id": self._run, "tracking_uri": where}
                with atomic(note) as temporary:
                    temporary.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        except (MlflowException, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"MLflow cannot be used ({error}); check MLFLOW_TRACKING_URI, delete {note} to begin a new "
                "run of MLflow, or leave out --mlflow."
            ) from None

    def _new_run(self, name: str, config: Mapping[str, Any]) -> str:
        from mlflow.entities import Param

        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        # Not mlflow.set_experiment, which would change the process for a program of the user's.
        known = self._client.get_experiment_by_name(experiment)
        number = known.experiment_id if known else self._client.create_experiment(experiment)
        run = str(self._client.create_run(number, run_name=name).info.run_id)
        params = []
        for path, value in flat(config).items():
            params.append(Param(path, str(value)[:LONGEST_PARAMETER]))
        for start in range(0, len(params), 100):  # one call takes no more
            self._client.log_batch(run, params=params[start : start + 100])
        return run

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Write a point of each curve, all in one call."""
        from mlflow.entities import Metric
        from mlflow.exceptions import MlflowException

        now = int(1000 * time.time())  # MLflow counts milliseconds
        points = [Metric(name, value, now, step) for name, value in values.items()]
        try:
            self._client.log_batch(self._run, metrics=points)
        except MlflowException as error:
            # A server that is gone must not end a training of days: metrics.jsonl has everything.
            if not self._told:
                print(f"MLflow does not take step {step} ({error}); training goes on", file=sys.stderr)
            self._told = True

    def finish(self) -> None:
        """Tell MLflow that the run is finished."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.set_terminated(self._run)
        except MlflowException as error:
            print(f"MLflow does not take the end of the run ({error})", file=sys.stderr)


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their paths, such as `sgd.lr`."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def check_trackers(tensorboard: bool, mlflow: bool) -> None:
    """Refuse a tracker whose package is missing, before a run folder is made.

    Raises:
        UserError: the optional package is not installed.
    """
    if tensorboard and find_spec("tensorboard") is None:
        raise UserError(_missing("TensorBoard", "tensorboard"))
    if mlflow and find_spec("mlflow") is None:
        raise UserError(_missing("MLflow", "mlflow"))


def _missing(name: str, extra: str) -> str:
    return f"{name} is not installed; run {install_command(extra)}, or leave out --{extra}."


def open_trackers(folder: Path, config: Mapping[str, Any], tensorboard: bool, mlflow: bool) -> list[Tracker]:
    """The trackers that a run asks for.

    Args:
        folder: the run folder, which exists.
        config: settings of the run.
        tensorboard: whether to write TensorBoard events.
        mlflow: whether to write to MLflow.
    """
    trackers: list[Tracker] = []
    if tensorboard:
        trackers.append(TensorBoardTracker(folder))
    if mlflow:
        trackers.append(MLflowTracker(folder, config))
    return trackers
