"""TensorBoard is tested in tests/ofa/test_train.py; here is MLflow, with its own client as the oracle."""

import json
import re
from pathlib import Path

import pytest

from engine.command.install import install_command
from engine.errors import UserError
from engine.run import Run, read_json
from engine.runs.tracking import check_trackers, flat, open_trackers


def test_settings_have_paths() -> None:
    assert flat({"epochs": 3, "sgd": {"lr": 0.1, "schedule": {"name": "cosine"}}}) == {
        "epochs": 3,
        "sgd.lr": 0.1,
        "sgd.schedule.name": "cosine",
    }


@pytest.mark.parametrize("extra", ["tensorboard", "mlflow"])
def test_a_missing_package_is_said(extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.runs.tracking.find_spec", lambda _: None)
    with pytest.raises(UserError, match=f"{re.escape(install_command(extra))}, or leave out --{extra}"):
        check_trackers(tensorboard=extra == "tensorboard", mlflow=extra == "mlflow")
    check_trackers(tensorboard=False, mlflow=False)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # MLflow's own imports warn
def test_a_resumed_run_goes_on_in_the_same_run_of_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    store = (tmp_path / "store").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    folder = tmp_path / "run"
    folder.mkdir()

    def track(step: int, loss: float) -> Run:
        run = Run(folder)
        run.mirror_to(open_trackers(folder, {"sgd": {"lr": 0.1}}, tensorboard=False, mlflow=True))
        run.log(step=step, arch="largest", loss=loss, note="no number")
        return run

    track(10, 2.0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "elsewhere").as_uri())
    track(20, 1.0).finish()

    client = mlflow.MlflowClient(store)
    note = read_json(folder / "mlflow.json")
    found = client.get_run(note["run_id"])
    assert found.info.status == "FINISHED" and found.info.run_name == "run"
    assert found.data.params == {"sgd.lr": "0.1"}
    history = client.get_metric_history(note["run_id"], "largest/loss")
    assert [(point.step, point.value) for point in history] == [(10, 2.0), (20, 1.0)]

    client.delete_run(note["run_id"])
    (folder / "mlflow.json").write_text(json.dumps({"run_id": "gone", "tracking_uri": store}))
    with pytest.raises(UserError, match=r"MLflow cannot be used.*mlflow\.json"):
        track(30, 1.0)
