"""What somebody else adds to the study of a selection, and how the progress counts."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from engine.command.cli import parse
from engine.command.progress import Advance
from predictors import open_studies
from predictors import select as select_module
from predictors.accuracy.pairs import read_pairs
from predictors.collect import Collect
from predictors.select import Select


@pytest.fixture(scope="module")
def collected(trained_run: Path) -> Path:
    assert parse(Collect, ["--run", str(trained_run), "--count", "12"]).execute() == 0
    return trained_run


def test_what_a_notebook_enqueues_is_measured_by_the_next_select(
    collected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps: list[str] = []

    @contextmanager
    def counted(what: str, total: int) -> Iterator[Advance]:
        yield steps.append

    monkeypatch.setattr(select_module, "progress", counted)
    storage = tmp_path / "journal"
    words = ["--flops", "100k", "--explore", "coarse-to-fine", "--storage", str(storage)]
    assert parse(Select, ["--run", str(collected), "--measure", "1", *words]).execute() == 0
    opened = open_studies(str(storage))
    name = optuna.get_all_study_names(opened)[0]
    study = optuna.load_study(study_name=name, storage=opened)
    assert name.endswith("-100k") and study.user_attrs["run"] == collected.name
    assert study.metric_names == ["val_accuracy"] and study.user_attrs["limits"] == {"macs": "100k"}
    sources = [trial.user_attrs["source"] for trial in study.trials]
    assert sources.count("pairs") == len(read_pairs(collected)) and sources.count("select") <= 1
    study.enqueue_trial({"resolution": 12, "depth[0]": 1})
    steps.clear()
    assert parse(Select, ["--run", str(collected), "--measure", "1", *words]).execute() == 0
    assert len(steps) == 1, "what was enqueued is no step of the one that --measure asks for"
    assert "enqueued subnets to measure first: 1\n" in capsys.readouterr().out
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}
    found = next(t for t in study.trials if t.user_attrs["source"] == "added")
    assert (found.params["resolution"], found.params["depth[0]"]) == (12, 1) and 0 < found.value < 1
    assert found.user_attrs.keys() >= {"macs", "params", "size_bytes", "memory_bytes"}
    assert found.constraints["macs"] == found.user_attrs["macs"] - 100_000
