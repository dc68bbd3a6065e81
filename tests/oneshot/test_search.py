"""The search command: files, metrics, resume bit for bit, collapse, tables, costs, and every mistake one
sentence."""

import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.command.cli import parse
from engine.config import read_yaml
from engine.data.digits import Digits
from engine.data.text import Grammar, load_text
from engine.errors import UserError
from engine.run import RUN_FILES, read_lines
from oneshot.bilevel import dominant_eigenvalue
from oneshot.methods.darts import Darts
from oneshot.methods.sampled.fbnet import FbNet
from oneshot.methods.sampled.proxyless import Proxyless, ProxylessR
from oneshot.nasbench201.codes import CELLS
from oneshot.nasbench201.table import AccuracyTable
from oneshot.objectives.building import fit_batch, usual_space
from oneshot.retrain import Retrain
from oneshot.search import Search
from oneshot.search_loop import SearchLoop
from oneshot.searcher import Searcher
from oneshot.spaces.cells import find_space
from oneshot.spaces.genotype import Genotype

SMALL = ("--channels", "2", "--batch-size", "64", "--device", "cpu")
CELL = (*SMALL, "--space", "nasbench201", "--cells", "1")
DARTS = (*SMALL, "--space", "darts_s2", "--cells", "3")
TEXT = (
    *("--space", "recurrent", "--device", "cpu", "--data.sentences", "40", "--batch-size", "4"),
    *("--text.hidden", "8", "--text.bptt", "6", "--method.sgd.lr", "1", "--method.sgd.lr-min", "1"),
)


@pytest.fixture(autouse=True)
def _without_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    """The estimate of memory takes steps of its own, which tests that count steps must not count."""
    monkeypatch.setattr("oneshot.search.search_memory", lambda *search: None)
    monkeypatch.setattr("oneshot.search.say_memory", lambda *said: None)


def search(out: Path, *flags: str) -> int:
    return parse(Search, [*flags, "--out", str(out)]).execute()


def epochs(out: Path) -> list[dict[str, Any]]:
    return [point for point in read_lines(out / "metrics.jsonl") if "genotype" in point]


def tensors(state: Any) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state]
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else []
    return [tensor for part in parts for tensor in tensors(part)]


def same_end(a: Path, b: Path) -> bool:
    """The same cell, the same measurements and the same state."""
    states = [tensors(torch.load(path / "state.pt", weights_only=True)) for path in (a, b)]
    assert len(states[0]) > 4
    assert epochs(a) == epochs(b)
    assert (a / "genotype.json").read_bytes() == (b / "genotype.json").read_bytes()
    return all(torch.equal(x, y) for x, y in zip(*states, strict=True))


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """A real Ctrl-C in the middle of that step, once."""
    original, count = Searcher.step, 0

    def step(self: Searcher, number: int, train: Any, valid: Any) -> Tensor:
        nonlocal count
        count += 1
        if count == steps:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, number, train, valid)

    monkeypatch.setattr(Searcher, "step", step)


@pytest.mark.slow
def test_a_search_learns_and_leaves_what_the_next_command_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert search(out, *DARTS, "--epochs", "3") == 0
    names = {path.name for path in out.iterdir()}
    assert names == {
        *("config.yaml", "env.json", "metrics.jsonl", "state.pt", "genotype.json", "outcome.json"),
        *("cell.svg", "cell.png", "alphas.png", "DONE"),
    }
    assert names <= RUN_FILES, "--overwrite leaves nothing of it behind"
    found = Genotype.model_validate_json((out / "genotype.json").read_text())
    points = epochs(out)
    assert [point["epoch"] for point in points] == list(range(3))
    assert points[-1]["genotype"] == found.model_dump(mode="json")
    assert points[-1]["accuracy"] > 0.2, "ten classes: chance is 0.1"
    assert np.shape(points[0]["alphas"]["normal"]) == (14, 2)
    assert points[-1]["skips"].keys() == {"normal", "reduce"}
    losses = [point for point in read_lines(out / "metrics.jsonl") if "loss" in point]
    assert losses[0]["loss"] > losses[-1]["loss"] and all(
        math.isfinite(point["architecture_loss"]) for point in losses
    )
    said = capsys.readouterr().out
    assert (
        "10 classes; 628 images for the weights, 630 images for the architecture; 3 epochs of 9 steps" in said
    )
    assert "an epoch: 9 batches of 64; 52 images are left over and not used, others in each epoch" in said
    assert "training images of each class: 0 63" in said
    assert "36 channels, as published for CIFAR-10" in said
    *_, last = said.splitlines()
    assert last == f"next: python -m oneshot.retrain --genotype {out} --out {out}-retrained"
    assert parse(Retrain, shlex.split(last)[4:]).genotype == str(out)

    again = tmp_path / "again"
    assert parse(Search, ["--config", str(out / "config.yaml"), "--out", str(again)]).execute() == 0
    assert same_end(out, again)
    capsys.readouterr()
    assert parse(Search, ["--config", str(out / "config.yaml"), "--out", str(out), "--resume"]).execute() == 0
    assert "finished already" in capsys.readouterr().out
    with pytest.raises(UserError, match="already holds a finished run; add --overwrite"):
        search(out, *DARTS)


@pytest.mark.slow
def test_few_images_make_a_smaller_batch_and_events_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out, flags = tmp_path / "run", (*CELL, "--epochs", "1", "--batch-size", "700", "--tensorboard")
    assert search(out, *flags) == 0
    said = capsys.readouterr().out
    assert "628 images instead of 700, since there are only 628 images in the smaller part." in said
    assert read_yaml(out / "config.yaml")["batch_size"] == 628
    assert search(out, *flags, "--resume") == 0 and "finished already" in capsys.readouterr().out
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    (point,) = epochs(out)
    (event,) = events.Scalars("accuracy")
    assert event.step == point["step"] and event.value == pytest.approx(point["accuracy"])


def test_each_part_fills_a_batch(capsys: pytest.CaptureFixture[str]) -> None:
    images, text = Digits(val=0.02).load(torch.device("cpu"), 0), load_text(Grammar(sentences=20))
    assert fit_batch(64, images, Darts()) == images.count("val") == 26
    assert fit_batch(64, images, Darts(level="single")) == 64
    shorter = min(len(text.splits[split]) for split in ("train", "val"))
    assert fit_batch(256, text, Darts()) == shorter // 3
    said = capsys.readouterr().out
    assert "only 26 images in the smaller part; take --data.val nearer to 0.5." in said
    assert f"instead of 256, since there are only {shorter} words" in said


FEW = ("--method.controller-steps", "2", "--method.samples-a-step", "2")
RESUMED = {  # tests/contracts has every method on every space
    "second order": (CELL, ("--method.order", "second")),
    "running statistics, edge weights": (
        (*DARTS, "--channels", "4"),
        ("--method", "pc_darts", "--method.warmup-epochs", "1"),
    ),
    "controller": (CELL, ("--method", "enas", *FEW, "--method.candidates", "4")),
    "text": (TEXT, ()),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", RESUMED)
def test_resume_is_bit_for_bit(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = (*RESUMED[what][0], *RESUMED[what][1], "--epochs", "2")
    assert search(tmp_path / "whole", *flags) == 0
    with monkeypatch.context() as patch:
        stop_after(patch, steps := {"controller": 9, "text": 5}.get(what, 14))  # 9 is an epoch's end
        assert search(tmp_path / "parts", *flags) == 130
    assert f"stopped at step {steps} of" in capsys.readouterr().out
    assert not (tmp_path / "parts" / "DONE").exists()
    assert search(tmp_path / "parts", *flags, "--resume") == 0
    assert same_end(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
def test_ctrl_c_in_the_last_step_stops_before_the_end_and_resumes_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ("--method.candidates", "5", "--method.finalists", "2")
    flags = (*CELL, "--method", "random_ws", *few, "--epochs", "1")
    with monkeypatch.context() as patch:
        stop_after(patch, 9)
        assert search(tmp_path / "run", *flags) == 130
    assert search(tmp_path / "run", *flags, "--resume") == 0
    assert len(epochs(tmp_path / "run")) == 1
    assert (tmp_path / "run" / "genotype.json").exists() and not (tmp_path / "run" / "alphas.png").exists()
    (tmp_path / "run" / "DONE").unlink()
    assert search(tmp_path / "run", *flags, "--resume") == 0
    assert "resumed at the end" in capsys.readouterr().out


@pytest.mark.slow
def test_what_a_kill_before_the_first_checkpoint_logged_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: SearchLoop) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SearchLoop, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            search(tmp_path / "run", *CELL, "--epochs", "1")
    assert search(tmp_path / "run", *CELL, "--epochs", "1", "--resume") == 0
    assert len(epochs(tmp_path / "run")) == 1


@pytest.mark.slow
def test_many_signals_to_a_process(tmp_path: Path) -> None:
    flags = [*CELL, "--epochs", "500", "--threads", "1", "--out", str(tmp_path / "run")]
    words = [sys.executable, "-m", "oneshot.search", *flags]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 100
    while not (tmp_path / "run" / "state.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    for number in (signal.SIGTERM, *[signal.SIGINT] * 10):
        process.send_signal(number)
        time.sleep(0.01)
    out, err = process.communicate(timeout=100)
    assert (process.returncode, "Traceback" in err) == (130, False), err
    assert "continue with the same command and --resume" in out
    assert not list((tmp_path / "run").glob(".*")), "a temporary file was left"


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["loss", "weights", "architecture"])
def test_what_is_not_finite_stops_the_search_and_is_never_saved(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, count = Searcher.step, 0

    def step(self: Searcher, number: int, train: Any, valid: Any) -> Tensor:
        nonlocal count
        count += 1
        losses = original(self, number, train, valid)
        if count == 18:  # the last of the second epoch
            if broken == "weights":
                next(self.state.objective.network.parameters()).data.fill_(math.nan)
            if broken == "architecture":
                self.state.alphas.all()[0].data[0, 0] = math.inf
        return losses * math.nan if broken == "loss" and count == 13 else losses

    monkeypatch.setattr(Searcher, "step", step)
    step_number = 12 if broken == "loss" else 18  # a loss is of a step, the others are looked at in the end
    said = (
        rf"^The {broken} (is|are) not finite at step {step_number} \(epoch 2\); start again with --overwrite "
        r"and a lower --method\.sgd\.lr"
    )
    with pytest.raises(UserError, match=said):
        search(tmp_path / "run", *CELL, "--epochs", "3")
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert state["step"] == 9 and all(tensor.isfinite().all() for tensor in tensors(state))


@pytest.mark.slow
def test_it_stops_at_collapse_and_goes_back_4_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = (
        *(*CELL, "--epochs", "16", "--watch-every", "1", "--stop-at-collapse"),
        *("--evaluate-images", "50", "--batch-size", "500"),
    )
    grown = iter([1.0] * 8 + [2.0] * 99)
    monkeypatch.setattr(Searcher, "eigenvalue", lambda self, batch: next(grown))
    assert search(tmp_path / "run", *flags) == 0
    points = epochs(tmp_path / "run")
    assert len(points) == 11, (
        "not before epoch 10; then the mean of 8 to 10 and two before is 1.6 times that of 2 to 6"
    )
    assert json.loads((tmp_path / "run" / "genotype.json").read_text()) == points[6]["genotype"]
    assert "stopped after epoch 11, took the cell of epoch 7" in capsys.readouterr().out
    (tmp_path / "run" / "DONE").unlink()
    assert search(tmp_path / "run", *flags, "--resume") == 0
    assert len(epochs(tmp_path / "run")) == 11, "killed while it wrote its findings, it does not search on"


@pytest.mark.slow
def test_the_watched_eigenvalue_is_that_of_the_validation_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []

    def eigenvalue(loss: Any, alphas: list[Tensor], generator: torch.Generator) -> float:
        seen.append(dominant_eigenvalue(loss, alphas, generator))
        (first,) = torch.autograd.grad(loss(), alphas, create_graph=True)
        rows = [torch.autograd.grad(g, alphas, retain_graph=True)[0].flatten() for g in first.flatten()]
        found = torch.linalg.eigvalsh(torch.stack(rows).double())
        assert seen[-1] == pytest.approx(float(found.max()), abs=0.01 * float(found.abs().max()))
        return seen[-1]

    monkeypatch.setattr("oneshot.searcher.dominant_eigenvalue", eigenvalue)
    assert search(tmp_path / "run", *CELL, "--epochs", "3", "--watch-every", "2") == 0
    assert [point.get("eigenvalue") for point in epochs(tmp_path / "run")] == [None, seen[0], None]


@pytest.mark.slow
def test_watching_changes_nothing(tmp_path: Path) -> None:
    for name, flags in (("plain", ()), ("watched", ("--watch-every", "1", "--evaluate-images", "30"))):
        assert search(tmp_path / name, *DARTS, "--epochs", "1", "--batch-size", "50", *flags) == 0
    states = [
        tensors(torch.load(tmp_path / name / "state.pt", weights_only=True)) for name in ("plain", "watched")
    ]
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("table") / "table.csv"
    AccuracyTable("made up", {("cifar10", "test"): np.arange(CELLS) / 200}).write(path)
    return path


@pytest.mark.slow
def test_a_table_tells_the_true_accuracy_of_each_epoch(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        search(tmp_path / "run", *CELL, "--epochs", "2", "--table", str(table), "--table-budget", "10") == 0
    )
    accuracies = AccuracyTable.read(table)
    points = epochs(tmp_path / "run")
    assert all(
        point["true_accuracy"] == accuracies.accuracy(Genotype.model_validate(point["genotype"]), "cifar10")
        for point in points
    )
    said = capsys.readouterr().out
    assert (
        "this choice" in said
        and "regularised evolution" in said
        and f"{accuracies.best('cifar10').accuracy:.2f}" in said
    )


def cost_flag(**settings: Any) -> tuple[str, str]:
    return "--penalties", json.dumps([{"name": "cost", **settings}])


@pytest.mark.slow
def test_penalties_reach_the_architecture(tmp_path: Path) -> None:
    """With nothing but the cost at work, every cheap operation gains on every dear one."""
    cheap = {"none": 9, "skip_connect": 1, "nor_conv_1x1": 2e6, "nor_conv_3x3": 3e6, "avg_pool_3x3": 1}
    (tmp_path / "latency.json").write_text(json.dumps(cheap))
    rows = [[cost if name != "none" else 0 for name, cost in cheap.items()]] * 6
    (tmp_path / "full.json").write_text(json.dumps({"cell": rows, "constant": 0}))
    flags = (*CELL, "--epochs", "2", "--method.geometry.lr", "0.1", "--method.geometry.weight-decay", "0")
    ends = []
    for name in ("latency", "full"):
        heavy = cost_flag(of="latency", table=str(tmp_path / f"{name}.json"), form="add", ref=1000, scale=100)
        assert search(tmp_path / name, *flags, *heavy) == 0
        ends.append(np.array(epochs(tmp_path / name)[-1]["alphas"]["cell"]))
    assert (ends[0] == ends[1]).all(), "both forms say the same"
    assert (ends[0][:, [2, 3]].max(1) < ends[0][:, [0, 1, 4]].min(1)).all()
    assert search(tmp_path / "macs", *flags, "--epochs", "1", "--penalties", "beta_decay,cost") == 0
    assert [
        p["name"]
        for p in parse(Search, [*flags, "--penalties", "beta_decay, cost"]).model_dump()["penalties"]
    ] == [
        "beta_decay",
        "cost",
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read: No such file"),
        ("{", "is not valid JSON"),
        ("[1, 2]", "does not fit space nasbench201"),
        (
            '{"skip_connect": 1}',
            "must have a number of at least 0 for each of none, skip_connect, nor_conv_1x1",
        ),
        ('{"cell": [[1, 2], [3]]}', "does not fit"),
        ('{"cell": [[1, 2, 3, 4, 5]]}', "6 rows of 5 numbers"),
        ('{"skip_connect": 1, "nor_conv_1x1": -1, "nor_conv_3x3": 1, "avg_pool_3x3": 1}', "of at least 0"),
        ('{"skip_connect": 1, "nor_conv_1x1": NaN, "nor_conv_3x3": 1, "avg_pool_3x3": 1}', "of at least 0"),
        (
            '{"skip_connect": 1, "nor_conv_1x1": 1, "nor_conv_3x3": 1, "avg_pool_3x3": 1, "constant": "a"}',
            "does not fit",
        ),
        (
            '{"skip_connect": 1, "nor_conv_1x1": 1, "nor_conv_3x3": 1, "avg_pool_3x3": 1}',
            "takes the logarithm .* take a smaller unit",
        ),
    ],
)
def test_a_cost_table_that_does_not_fit_is_one_sentence(
    tmp_path: Path, content: str | None, said: str
) -> None:
    path = tmp_path / "costs.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=said):
        search(tmp_path / "run", *CELL, *cost_flag(of="latency", table=str(path)))
    assert not (tmp_path / "run").exists()


def test_one_level_trains_on_all_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert search(tmp_path / "run", *CELL, "--method", "gaea", "--epochs", "1", "--batch-size", "600") == 0
    assert (
        "1258 images for the weights, 1258 images for the architecture; 1 epoch of 2 steps"
        in capsys.readouterr().out
    )


@pytest.mark.slow
def test_warm_up_leaves_the_architecture_alone(tmp_path: Path) -> None:
    flags = ("--method.warmup-epochs", "2", "--epochs", "3", "--batch-size", "300")
    assert search(tmp_path / "run", *CELL, *flags) == 0
    first, second, third = (point["alphas"] for point in epochs(tmp_path / "run"))
    assert first == second != third
    logged = [point for point in read_lines(tmp_path / "run" / "metrics.jsonl") if "loss" in point]
    assert ["architecture_loss" in point for point in logged] == [False, False, True]


def test_published_settings_are_the_defaults_and_a_flag_overrides_one() -> None:
    plain = parse(Search, ["--method", "gdas"]).method
    cell = parse(Search, ["--method", "gaea", "--space", "nasbench201", "--method.sgd.lr", "0.2"]).method
    text = parse(Search, ["--space", "recurrent", "--method.geometry.lr", "0.5"]).method
    assert (plain.epochs, plain.sgd.nesterov, plain.sgd.weight_decay, plain.order) == (
        250,
        True,
        5e-4,
        "first",
    )
    assert (cell.level, cell.epochs, cell.sgd.cosine_epochs, cell.sgd.lr, cell.sgd.nesterov) == (
        "released",
        25,
        50,
        0.2,
        False,
    )
    assert (text.sgd.lr, text.sgd.clip_norm, text.geometry.lr, text.geometry.weight_decay) == (
        20.0,
        0.25,
        0.5,
        1e-3,
    )
    for name in ("proxyless", "proxyless_r", "fbnet", "snas", "drnas", "darts_pt", "sdarts"):
        other = parse(Search, ["--method", name, "--space", "recurrent"]).method
        assert other.sgd == text.sgd and other.refuse(find_space("recurrent")) is None, name
    assert parse(Search, ["--method", "beta_darts", "--space", "nasbench201"]).method.epochs == 100
    assert parse(Search, ["--data", "npz", "--data.path", "x.npz"]).data.val == 0.5
    assert parse(Search, ["--data.val", "0.3"]).data.val == 0.3


def test_methods_for_chains_search_a_chain_by_default(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = parse(Search, ["--method", "proxyless"])
    assert (small.space, small.method.batch_size, small.data.name) == ("chain32", 64, "digits")
    assert parse(Search, ["--method", "proxyless", "--space", "darts"]).space == "darts"
    for kind, large in ((Proxyless, "proxyless"), (ProxylessR, "proxyless"), (FbNet, "fbnet")):
        assert usual_space(kind, {}) == usual_space(kind, {"name": "cifar10"}) == "chain32"
        assert usual_space(kind, {"name": "imagenet"}) == large
        assert usual_space(kind, {"name": "imagenet", "size": 128.0}) == large
        for small_size in ("64", "\N{SUPERSCRIPT TWO}", None):
            assert usual_space(kind, {"name": "imagenet", "size": small_size}) == "chain32"
    assert usual_space(Darts, {"name": "imagenet"}) == "darts"
    with pytest.raises(UserError):
        search(tmp_path / "run", "--method", "proxyless", "--space", "chain32", "--device", "cuda:99")
    said = capsys.readouterr().out
    assert said == "space chain32 is the default of method proxyless, which is for chains of blocks\n"
    with pytest.raises(UserError, match="There is no search space ''"):
        search(tmp_path / "run", "--space", "")


def test_a_recipe_may_name_its_sections(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("method: gaea\ndata: digits\nspace: nasbench201\n")
    found = parse(Search, ["--config", str(tmp_path / "r.yaml")])
    assert (found.method.name, found.method.level, found.data.val) == ("gaea", "released", 0.5)
    (tmp_path / "r.yaml").write_text("method: [gaea]\n")
    with pytest.raises(UserError, match=r"r\.yaml: 'method' = \['gaea'\] is not valid"):
        parse(Search, ["--config", str(tmp_path / "r.yaml")])


@pytest.mark.slow
def test_mistakes_are_one_sentence_and_leave_no_folder(tmp_path: Path, table: Path) -> None:
    broken = tmp_path / "broken.csv"
    broken.write_text("arch,cifar10-test\n")
    for flags, said in (
        (("--method", "dart"), "there is no method 'dart'; did you mean 'darts'"),
        (("--space", "nowhere"), "There is no search space 'nowhere'"),
        (("--method", "darts", "--method.keep", "1"), "not a flag"),
        (("--method", "darts", "--method.candidates", "1"), "there is no field 'method.candidates'"),
        (("--space", "recurrent", "--data", "digits"), "do not go together"),
        (("--data", "grammar"), "do not go together"),
        (("--table", str(table)), "give it with --space nasbench201"),
        (("--space", "nasbench201", "--table", str(broken)), "0 different cells"),
        (
            ("--space", "nasbench201", "--table", str(table), "--dataset", "cifar100"),
            "no test accuracy on 'cifar100'; it has cifar10 test",
        ),
        (("--space", "nasbench201", "--table", str(tmp_path / "missing.csv")), "No such file"),
        (("--stop-at-collapse",), "add --watch-every 1"),
        (("--method", "gdas", "--watch-every", "1"), "no smooth loss"),
        (("--method", "random_ws", "--watch-every", "1"), "no smooth loss"),
        (("--method", "pc_darts", "--epochs", "15"), "trains weights alone for 15 epochs"),
        (("--method", "drnas", "--epochs", "15"), "learn nothing else in 15, 7 in a stage; lower"),
        (("--method", "drnas", "--epochs", "1"), "fewer than the stages of drnas"),
        (("--method", "pc_darts", "--channels", "6"), "cannot be cut into 4 parts"),
        (("--method", "drnas", "--channels", "6"), "cut into 6 and 4 parts; take a multiple of 12."),
        (("--cells", "2"), "all reduction cells"),
        (("--method", "pr_darts", "--space", "nasbench201"), "leave it out with --method.penalties ''"),
        (
            ("--method", "darts_minus", "--space", "recurrent"),
            "cannot search space recurrent: an auxiliary skip",
        ),
        (
            ("--method", "gaea_pc_darts", "--space", "recurrent"),
            "cannot search space recurrent: partial channels",
        ),
        (
            ("--method", "pr_darts", "--method.relaxation.keep", "3", "--space", "darts_s2"),
            "more than the operations",
        ),
        (
            ("--method", "gaea", "--penalties", "beta_decay"),
            "--penalties: beta_decay has no meaning on a simplex",
        ),
        (("--method", "beta_darts", "--penalties", "beta_decay"), "given twice"),
        (("--method", "random_ws", "--penalties", "cost"), "penalties is for an architecture step"),
        (("--method", "enas", "--method.level", "single"), "level is for an architecture step"),
        (("--penalties", "wight"), "there is no penalties.0 'wight'"),
        (cost_flag(of="latency"), "needs a table"),
        (
            ("--space", "recurrent", "--penalties", "cost"),
            "costs are known for networks of images; leave out",
        ),
        (("--device", "abacus"), "not available here"),
        (("--resume", "--overwrite"), "give one of them"),
    ):
        with pytest.raises(UserError, match=said.replace("(", r"\(")) as complaint:
            search(tmp_path / "run", *flags)
        assert "\n" not in str(complaint.value) and str(complaint.value).endswith((".", "?"))
    assert not (tmp_path / "run").exists()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("")
    with pytest.raises(UserError, match="holds files that are not a run"):
        search(tmp_path / "photos", *CELL, "--overwrite")


@pytest.mark.slow
def test_a_damaged_checkpoint_or_another_configuration_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        assert search(tmp_path / "run", *CELL) == 130
    with pytest.raises(UserError, match="was started with seed = 0, not 1"):
        search(tmp_path / "run", *CELL, "--seed", "1", "--resume")
    with pytest.raises(UserError, match="unfinished run; add --resume"):
        search(tmp_path / "run", *CELL)
    torch.save({"epoch": 0}, tmp_path / "run" / "state.pt")
    with pytest.raises(UserError, match="is not of this run; start again with --overwrite"):
        search(tmp_path / "run", *CELL, "--resume")
    (tmp_path / "run" / "state.pt").write_bytes(b"12")
    with pytest.raises(UserError, match="cannot be loaded"):
        search(tmp_path / "run", *CELL, "--resume")
    assert search(tmp_path / "run", *CELL, "--epochs", "1", "--overwrite") == 0


@pytest.mark.parametrize(
    ("space", "flags"),
    [
        ("darts", ("--data", "npz", "--data.path", "my images.npz")),
        ("darts", ("--data", "cifar100", "--data.path", "there")),
        ("darts_s1", ("--data", "imagenet", "--data.path", "there")),
        ("darts", ("--data", "imagefolder", "--data.path", "there", "--data.size", "32")),
        ("nasbench201", ("--data", "npz", "--data.path", "x.npz")),
        ("nasbench201", ()),
        ("recurrent", ("--data", "text", "--data.path", "ptb")),
        ("recurrent", ("--data", "grammar", "--data.sentences", "70")),
    ],
)
def test_the_next_command_is_exact(space: str, flags: tuple[str, ...]) -> None:
    from oneshot.ending.outcome import retrain_command

    found = parse(Search, ["--space", space, *flags])
    words = shlex.split(retrain_command(Path("runs/a b"), space, found.data))
    assert words[:3] == ["python", "-m", "oneshot.retrain"]
    retrain = parse(Retrain, words[3:])
    assert (retrain.genotype, str(retrain.out)) == ("runs/a b", "runs/a b-retrained")
    assert retrain.data.name == found.data.name
    for field in ("path", "size", "sentences"):
        assert getattr(retrain.data, field, None) == getattr(found.data, field, None)
    if found.data.name in ("npz", "cifar100"):
        assert retrain.epochs == (200 if space == "nasbench201" else 600)
        assert (retrain.data.val, retrain.data.cutout) == (0.02, 0 if space == "nasbench201" else 16)
