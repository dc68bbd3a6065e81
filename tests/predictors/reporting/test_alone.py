"""A report beside networks trained alone: who is compared with whom, by which measure."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.command.cli import parse
from ofa.trained import TrainedSupernet
from ofa.tune import Tune
from predictors.report import Report
from predictors.reporting.alone import AloneComparison, Worth, compare_with_alone, find_alone, read_alone
from predictors.reporting.findings import read_selected_subnets
from predictors.select import Select

Runs = tuple[Path, Path]


@pytest.fixture(scope="module")
def runs(trained_run: Path, train: Callable[..., int], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """A supernet with a selected subnet, and the same network trained alone."""
    folder = tmp_path_factory.mktemp("alone")
    run, alone = folder / "supernet", folder / "alone"
    shutil.copytree(trained_run, run, ignore=shutil.ignore_patterns("selected", "optuna.journal", "report"))
    select = ["--run", str(run), "--flops", "60k", "--measure", "2", "--explore", "coarse-to-fine"]
    assert parse(Select, select).execute() == 0
    assert train(alone, "--arch", str(run / "selected" / "60k.json"), "--epochs", "1") == 0
    return run, alone


@pytest.mark.slow
def test_points_are_of_the_same_test_images(runs: Runs) -> None:
    run, alone = runs
    trained = TrainedSupernet(run, torch.device("cpu"))
    selected = read_selected_subnets(run, trained.space, None)
    worth = compare_with_alone(read_alone([alone], trained, selected), trained)
    assert worth is not None
    (found,) = worth.comparisons
    own = TrainedSupernet(alone, torch.device("cpu"))
    assert own.model.arch is not None
    # Measured by the other way that there is: as ofa.evaluate does it.
    assert found.alone_accuracy == pytest.approx(own.accuracy(own.model.arch, "test"))
    assert found.test_accuracy == pytest.approx(trained.accuracy(selected[0].arch, "test"))
    assert found.points == pytest.approx(100 * (found.test_accuracy - found.alone_accuracy))
    # Of n images of which a share differs, the standard error is at most 100 / sqrt(n) points.
    assert 0 <= found.std <= 100 / np.sqrt(trained.data.count("test"))


@pytest.mark.slow
def test_the_report_shows_it(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    run, alone = runs
    # The run beside it is found without --alone too.
    assert parse(Report, ["--run", str(run), "--random", "2"]).execute() == 0
    said = capsys.readouterr().out
    assert f"{alone}' trained a chosen architecture alone" in said
    found = json.loads((run / "report" / "alone.json").read_text())
    assert f"{abs(found['points']):.1f} ± {found['std']:.1f} points" in said
    page = (run / "report" / "report.html").read_text(encoding="utf-8")
    assert "than the same network trained alone for 1 epoch (alone)." in said, "in the sentence of the budget"
    assert "The same networks trained alone" in page and "alone, 1 epoch<" in page


@pytest.mark.slow
def test_other_runs_are_refused(runs: Runs, train: Callable[..., int], tmp_path: Path) -> None:
    run, _ = runs
    for extra, reason in (
        ((), "is a supernet, not one architecture"),
        (("--arch", "largest"), "is not selected in"),
        (("--arch", str(run / "selected" / "60k.json"), "--seed", "1"), "other images .* --seed 0"),
    ):
        other = tmp_path / str(len(extra))
        assert train(other, *extra, "--epochs", "1") == 0
        with pytest.raises(ValueError, match=reason):
            parse(Report, ["--run", str(run), "--alone", str(other)]).execute()


@pytest.mark.slow
def test_a_tuned_subnet_is_compared_with_its_tuned_weights(runs: Runs) -> None:
    run, alone = runs
    assert parse(Tune, ["--run", str(run), "--epochs", "1"]).execute() == 0
    trained, tuned = (TrainedSupernet(path, torch.device("cpu")) for path in (run, run / "tuned" / "60k"))
    selected = read_selected_subnets(run, trained.space, None)
    worth = compare_with_alone(read_alone([alone], trained, selected), trained)
    assert worth is not None and tuned.model.arch is not None
    (found,) = worth.comparisons
    assert found.state.startswith("tuned for 1 epoch")
    with pytest.raises(ValueError, match="tuned from a supernet, so it is not a network trained alone"):
        read_alone([run / "tuned" / "60k"], trained, selected)
    assert len(read_alone([alone, alone], trained, selected)) == 1
    assert found.test_accuracy == pytest.approx(tuned.accuracy(tuned.model.arch, "test"))


@pytest.mark.slow
def test_only_runs_that_fit_are_found_beside_it(runs: Runs, tmp_path: Path) -> None:
    """Neither the run itself, nor a damaged one, an unfinished one, one of other images, nor a tuned one."""
    run, alone = runs
    trained = TrainedSupernet(run, torch.device("cpu"))
    selected = read_selected_subnets(run, trained.space, None)
    assert find_alone(trained, selected) == [alone]
    assert find_alone(trained, []) == []
    for name in ("supernet", "damaged", "unfinished", "elsewhere", "copy"):
        shutil.copytree(run if name == "supernet" else alone, tmp_path / name)
    (tmp_path / "damaged" / "model.json").write_text("{")
    (tmp_path / "unfinished" / "DONE").unlink()
    model = json.loads((alone / "model.json").read_text())
    (tmp_path / "elsewhere" / "model.json").write_text(json.dumps(model | {"pixels_sha256": "0" * 64}))
    trained = TrainedSupernet(tmp_path / "supernet", torch.device("cpu"))
    assert find_alone(trained, selected) == [tmp_path / "copy"]


def comparison(points: float, budget: str = "1M") -> AloneComparison:
    return AloneComparison(budget, "as taken from the supernet", 1, 0.9, "alone", 3, 0.9, points, 0.5)


def test_the_sentence() -> None:
    better = Worth([comparison(2.0), comparison(1.0, "2M")], 1.5, 0.4)
    assert better.sentence() == (
        "On test images the 2 chosen subnets are on average 1.5 ± 0.4 points better than the same networks "
        "trained alone."
    )
    worse = Worth([comparison(-0.5)], -0.5, 0.4).sentence()
    assert "On test images 1M is 0.5 ± 0.4 points worse than the same network" in worse
    assert worse.endswith("; so small a difference may be chance.")
