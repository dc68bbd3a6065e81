"""The train command learns, resumes bit for bit, survives signals and NaN, and writes what others read."""

import functools
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from engine.checkpoint import load_weights
from engine.command.cli import parse
from engine.command.interrupt import Stop, until_stopped
from engine.config import read_yaml
from engine.data.sources import load_data
from engine.errors import UserError, WorkerDied
from engine.run import Run as RunFolder
from engine.run import read_lines
from ofa.space.arch import largest
from ofa.space.published import find_arch
from ofa.space.space import Space, load_space
from ofa.supernet import Supernet
from ofa.train import Train, advise_on_steps
from ofa.trained import TrainedSupernet, open_source
from ofa.training.sampling import Attentive, UniformSampler
from ofa.training.trainer import Trainer

Run = Callable[..., int]


def same_weights(a: Path, b: Path) -> bool:
    first, second = load_weights(a / "weights.safetensors"), load_weights(b / "weights.safetensors")
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.slow
def test_learns_digits(train: Run, tmp_path: Path) -> None:
    assert train(tmp_path / "run", "--epochs", "25", "--evaluate-every", "25") == 0
    scores = {
        p["arch"]: p["val_accuracy"] for p in read_lines(tmp_path / "run" / "metrics.jsonl") if "arch" in p
    }
    assert scores.keys() == {"smallest", "largest", "random0", "random1"}
    assert min(scores.values()) > 0.5, "ten classes: chance is 0.1"


def test_a_run_folder_holds_what_the_design_says(trained_run: Path) -> None:
    names = {p.name for p in trained_run.iterdir()}
    assert names >= {
        "config.yaml",
        "env.json",
        "metrics.jsonl",
        "model.json",
        "weights.safetensors",
        "state.pt",
        "DONE",
    }
    points = read_lines(trained_run / "metrics.jsonl")
    assert all(math.isfinite(p["loss"]) for p in points if "loss" in p)
    assert len(next(p for p in points if "loss" in p)["distillation"]) == 3
    assert str(trained_run) not in (trained_run / "model.json").read_text()


@pytest.mark.slow
def test_the_configuration_of_a_run_replays_it(trained_run: Path, tmp_path: Path) -> None:
    words = ["--config", str(trained_run / "config.yaml"), "--out", str(tmp_path / "again")]
    assert parse(Train, words).execute() == 0
    assert same_weights(trained_run, tmp_path / "again")


@pytest.mark.slow
def test_the_largest_learns_alone_at_first_and_the_smallest_with_the_others(
    train: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", "--sandwich.largest-first", "0.4", "--no-sandwich.smallest") == 0
    assert "a step: largest, 2 random (uniform); they learn" in capsys.readouterr().out
    points = [p for p in read_lines(tmp_path / "run" / "metrics.jsonl") if "loss" in p]
    students = {p["step"]: len(p["distillation"]) for p in points}
    # 33 steps, of which 14 are before 0.4 of them; 11 an epoch, and losses are logged every 10 and then.
    assert students == {10: 0, 11: 0, 14: 0, 20: 2, 22: 2, 30: 2, 33: 2}


@pytest.mark.slow
def test_another_seed_is_another_run(train: Run, trained_run: Path, tmp_path: Path) -> None:
    train(tmp_path / "run", "--seed", "1")
    assert not same_weights(trained_run, tmp_path / "run")


@pytest.fixture(scope="module")
def whole_run(
    train: Run, trained_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[tuple[str, ...]], Path]:
    """A run with some flags that nobody stopped; it is trained once."""

    @functools.cache
    def run(flags: tuple[str, ...]) -> Path:
        if not flags:
            return trained_run
        out = tmp_path_factory.mktemp("whole") / "run"
        assert train(out, *flags) == 0
        return out

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    "stop_after", [1, 11, 14]
)  # at once, at an epoch's end (11 steps each), in the middle
@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--ema", "0.9", "--data.mixup", "0.2", "--sandwich.dropout", "0.2"),
        ("--sandwich.largest-first", "0.4"),
    ],
    ids=["plain", "ema and mixup", "largest first"],
)
def test_resume_is_bit_for_bit(
    train: Run,
    whole_run: Callable[[tuple[str, ...]], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_after: int,
    flags: tuple[str, ...],
) -> None:
    whole, parts = whole_run(flags), tmp_path / "parts"
    original = Trainer.update

    def update(self: Trainer, x: torch.Tensor, y: torch.Tensor) -> None:
        original(self, x, y)
        if self.step == stop_after:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "update", update)
    assert train(parts, *flags) == 130
    assert not (parts / "DONE").exists()
    assert train(parts, *flags, "--resume") == 0
    assert same_weights(whole, parts)
    steps = [
        [(p["step"], p["val_accuracy"]) for p in read_lines(run / "metrics.jsonl") if "arch" in p]
        for run in (whole, parts)
    ]
    assert steps[0] == steps[1]


def test_resuming_a_finished_run_does_nothing(train: Run, trained_run: Path) -> None:
    before = (trained_run / "weights.safetensors").stat().st_mtime_ns
    assert train(trained_run, "--resume") == 0
    assert (trained_run / "weights.safetensors").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="already holds a finished run"):
        train(trained_run)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_names_its_step_and_keeps_the_checkpoint(
    train: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Trainer.update

    def update(self: Trainer, x: torch.Tensor, y: torch.Tensor) -> None:
        original(self, x * math.nan if self.step == 13 else x, y)

    monkeypatch.setattr(Trainer, "update", update)
    with pytest.raises(UserError, match=r"not finite at step 13 \(epoch 2\)"):
        train(tmp_path / "run")
    weights = load_weights(tmp_path / "run" / "weights.safetensors")
    assert all(t.isfinite().all() for t in weights.values())
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["step"] == 11


@pytest.mark.slow
@pytest.mark.parametrize("signalled", [False, True])
def test_broken_weights_are_never_saved(
    train: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signalled: bool
) -> None:
    original = Trainer.update

    def update(self: Trainer, x: torch.Tensor, y: torch.Tensor) -> None:
        original(self, x, y)
        if self.step == (
            13 if signalled else 22
        ):  # between two looks at the losses, or after the epoch's last loss
            next(self.supernet.parameters()).data.fill_(math.nan)
            if signalled:
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "update", update)
    with pytest.raises(UserError, match="weights are not finite"):
        train(tmp_path / "run")
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["step"] == 11


def test_resume_refuses_another_space_or_other_images(
    train: Run, tmp_path: Path, tiny_yaml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    space = tmp_path / "space.yaml"
    shutil.copy(tiny_yaml, space)
    flags = ("--space", str(space))
    original = Trainer.update

    def update(self: Trainer, x: torch.Tensor, y: torch.Tensor) -> None:
        original(self, x, y)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "update", update)
    assert train(tmp_path / "run", *flags) == 130
    before = (tmp_path / "run" / "model.json").read_text()
    space.write_text(space.read_text().replace("resolution: [8, 12]", "resolution: [8]"))
    with pytest.raises(UserError, match=r"The space or the images of run .* changed"):
        train(tmp_path / "run", *flags, "--resume")
    assert (tmp_path / "run" / "model.json").read_text() == before


@pytest.mark.slow
def test_sigterm_to_the_whole_group_saves_a_checkpoint(tmp_path: Path, tiny_yaml: Path) -> None:
    import numpy as np
    from PIL import Image

    for split, label in ((s, c) for s in ("train", "test") for c in ("a", "b")):
        (tmp_path / "images" / split / label).mkdir(parents=True)
        for i in range(20):
            Image.fromarray(np.full((16, 16, 3), 10 * i, np.uint8)).save(
                tmp_path / "images" / split / label / f"{i}.png"
            )
    words = [
        "--space",
        str(tiny_yaml),
        "--data.name",
        "imagefolder",
        "--data.path",
        str(tmp_path / "images"),
        "--data.size",
        "12",
    ]
    words += ["--batch-size", "8", "--epochs", "500", "--out", str(tmp_path / "run")]
    command = [sys.executable, "-m", "ofa.train", *words]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "state.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in err) == (130, False), err
    assert "--resume" in out


def test_ctrl_c_while_importing_is_quiet(tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "ofa.train", "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.split("|")[-1].strip() == "ofa":  # the package is imported, torch is not yet
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_ctrl_c_many_times_in_a_process(tiny_yaml: Path, tmp_path: Path) -> None:
    words = ["--space", str(tiny_yaml), "--epochs", "500", "--out", str(tmp_path / "run")]
    process = subprocess.Popen(
        [sys.executable, "-m", "ofa.train", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "state.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    for _ in range(20):
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "continue with the same command and --resume" in out
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["step"] > 0
    assert not list((tmp_path / "run").glob(".*")), "a temporary file was left"


@pytest.mark.slow
def test_tensorboard_gets_what_metrics_get(train: Run, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert train(tmp_path / "run", "--epochs", "1", "--tensorboard") == 0
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    points = read_lines(tmp_path / "run" / "metrics.jsonl")
    logged = [p for p in points if p.get("arch") == "largest"]
    assert [(e.step, e.value) for e in events.Scalars("largest/val_accuracy")] == [
        (p["step"], pytest.approx(p["val_accuracy"])) for p in logged
    ]
    assert len(events.Scalars("loss")) == len([p for p in points if "loss" in p])


def test_a_worker_that_the_same_signal_ended_is_no_error() -> None:
    def batches() -> Iterator[int]:
        yield 1
        raise WorkerDied("gone")

    stop = Stop()
    with pytest.raises(WorkerDied):
        list(until_stopped(batches(), stop))
    stop.requested = True
    assert list(until_stopped(batches(), stop)) == [1]


def test_stop_keeps_the_first_request(capsys: pytest.CaptureFixture[str]) -> None:
    stop = Stop()
    for _ in range(3):
        stop(signal.SIGTERM, None)
    assert stop.requested
    assert capsys.readouterr().err.count("stopping") == 1


def test_one_architecture_alone(train: Run, trained_run: Path, tmp_path: Path) -> None:
    assert train(tmp_path / "alone", "--arch", "smallest", "--epochs", "2") == 0
    trained = TrainedSupernet(tmp_path / "alone", torch.device("cpu"))
    assert trained.model.arch == find_arch(trained.space, "smallest") == find_arch(trained.space, "largest")
    points = read_lines(tmp_path / "alone" / "metrics.jsonl")
    assert [p["arch"] for p in points if "arch" in p] == ["alone"]
    assert all(p["distillation"] == [] for p in points if "loss" in p)


def test_a_bad_architecture_leaves_no_folder(train: Run, tmp_path: Path) -> None:
    for flags in (
        ("--arch", "huge"),
        ("--space", "nowhere"),
        ("--device", "abacus"),
    ):
        with pytest.raises(UserError):
            train(tmp_path / "run", *flags)
    assert not (tmp_path / "run").exists()


def test_a_batch_shrinks_to_few_images(
    train: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    y = np.arange(36) % 3
    x = np.random.default_rng(0).integers(0, 256, (36, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "few.npz", x_train=x, y_train=y, x_test=x[:6], y_test=y[:6])
    flags = ("--data", "npz", "--data.path", str(tmp_path / "few.npz"), "--batch-size", "32", "--epochs", "1")
    assert train(tmp_path / "run", *flags, "--data.val", "0.25") == 0
    assert "A batch is 27 images instead of 32" in capsys.readouterr().out
    assert read_yaml(tmp_path / "run" / "config.yaml")["batch_size"] == 27
    # The same words continue the run, though they ask for 32.
    assert train(tmp_path / "run", *flags, "--data.val", "0.25", "--resume") == 0
    assert train(tmp_path / "dropped", *flags, "--batch-size", "10", "--data.val", "0.25") == 0
    assert (
        "2 batches of 10; 7 images are left over and not used, others in each epoch"
        in capsys.readouterr().out
    )


def test_an_update_clips_warms_up_and_averages(tiny: Space, tmp_path: Path) -> None:
    flags = [
        "--sgd.clip-value",
        "0.001",
        "--sgd.warmup-epochs",
        "2",
        "--sgd.lr",
        "0.5",
        "--sgd.momentum",
        "0",
        "--sgd.weight-decay",
        "0",
    ]
    config = parse(Train, ["--epochs", "3", "--ema", "0.5", *flags])
    data = load_data(config.data, torch.device("cpu"), 0)
    trainer = Trainer(config, RunFolder(tmp_path), Supernet(tiny, 10, 1), data, None, UniformSampler(tiny))
    before = [p.detach().clone() for p in trainer.supernet.parameters()]
    trainer.update(*next(data.train_batches(64, 0)))
    moved = max(
        float((p.detach() - q).abs().max())
        for p, q in zip(trainer.supernet.parameters(), before, strict=True)
    )
    assert moved == pytest.approx(0.5 / (2 * trainer.steps) * 0.001, rel=0.1)
    trainer.update(*next(data.train_batches(64, 1)))
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * 2 / (2 * trainer.steps))
    weights = zip(trainer.weights.parameters(), trainer.supernet.parameters(), strict=True)
    assert trainer.weights is not trainer.supernet
    assert any(not torch.equal(a, b) for a, b in weights), "the average is what is evaluated and saved"


def test_regularised_stages_of_one_architecture_alone_are_those_of_its_space() -> None:
    train = parse(Train, ["--config", "ofa/attentive_nas", "--arch", "smallest"])
    arch = find_arch(load_space("attentive_nas"), "attentive_nas_a6")
    assert train._for_blocks(arch).sandwich.drop_connect_stages == 6 + 1
    assert train._for_blocks(None) == train


@pytest.mark.parametrize(
    "name", [path.stem for path in (Path(__file__).parents[2] / "configs" / "ofa").glob("*.yaml")]
)
def test_recipes_are_valid(name: str) -> None:
    recipe = parse(Train, ["--config", f"ofa/{name}"])
    assert load_space(recipe.space or "digits").size() > 1000
    sampling = recipe.sandwich.sampling
    if name.startswith("attentive_nas"):
        mode = {"attentive_nas_worstup": "worstup", "attentive_nas_coin": "coin"}.get(name, "bestup")
        judge = ("predicted", 50) if name == "attentive_nas_predicted" else ("batch_loss", 3)
        assert isinstance(sampling, Attentive)
        assert (sampling.mode, sampling.judge.name, sampling.judge.candidates) == (mode, *judge)
    else:
        assert sampling.name == ("macs_prior" if name == "macs_prior" else "uniform")
    assert recipe.sandwich.distillation.name == (
        "alpha_divergence" if name == "alphanet" else "soft_cross_entropy"
    )


def test_trained_measures_the_same_every_time(trained_run: Path) -> None:
    trained = TrainedSupernet(trained_run, torch.device("cpu"))
    arch = find_arch(trained.space, "largest")
    assert trained.accuracy(arch, "val") == trained.accuracy(arch, "val")
    evaluated = [p for p in read_lines(trained_run / "metrics.jsonl") if p.get("arch") == "largest"][-1]
    assert trained.accuracy(arch, "val") == evaluated["val_accuracy"]
    assert trained.cost(arch) == (evaluated["macs"], evaluated["params"])


def test_damaged_runs_are_one_sentence(trained_run: Path, tmp_path: Path) -> None:
    import shutil

    for name, content, said in (
        ("model.json", b"{}", "'classes' is missing"),
        ("model.json", b"{", "not valid JSON"),
        ("config.yaml", b"seed: [", "not valid YAML"),
        ("config.yaml", b"seed: 0", "'data' is missing"),
        ("config.yaml", b"seed: 1\ndata: {name: digits}", "are not those it was trained on"),
        ("weights.safetensors", b"1234", "cannot be loaded"),
    ):
        copy = tmp_path / f"{name}{len(list(tmp_path.iterdir()))}"
        shutil.copytree(trained_run, copy)
        (copy / name).write_bytes(content)
        with pytest.raises(UserError, match=said):
            TrainedSupernet(copy, torch.device("cpu"))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ((), "already holds a finished run"),
        (("--resume", "--seed", "1"), "was started with seed = 0, not 1"),
        (("--out", "new", "--init", "nowhere"), "'nowhere' is not a run folder"),
        (("--out", "new", "--space", "nowhere"), "nowhere"),
        (("--out", "new", "--arch", "tinyest"), "tinyest"),
    ],
    ids=["existing", "seed", "init", "space", "arch"],
)
def test_what_is_wrong_without_the_images_is_refused_before_they_are_read(
    train: Run, trained_run: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], says: str
) -> None:
    def read(*_: object) -> None:
        raise AssertionError("the images are read")

    monkeypatch.setattr("engine.training.load_data", read)
    with pytest.raises(UserError, match=says):
        train(trained_run, *flags)


@pytest.mark.slow
def test_a_run_stops_after_its_time_and_may_be_resumed_with_another(
    train: Run,
    trained_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    original = Trainer.update

    def update(self: Trainer, x: torch.Tensor, y: torch.Tensor) -> None:
        original(self, x, y)
        if self.step == 14:
            self.saving = self.saving._replace(stop_at=0.0)  # long over

    monkeypatch.setattr(Trainer, "update", update)
    assert train(tmp_path / "run", "--stop-after", "1h") == 130
    out, err = capsys.readouterr()
    assert "stopped at step 14 of 33; continue with the same command and --resume" in out
    assert "the time of --stop-after is over" in err
    assert "stop_after" not in (tmp_path / "run" / "config.yaml").read_text()
    monkeypatch.undo()
    assert train(tmp_path / "run", "--resume", "--stop-after", "2h") == 0
    assert same_weights(trained_run, tmp_path / "run")


def test_the_time_counts_from_the_start_of_the_command() -> None:
    before = time.monotonic()
    command = parse(Train, ["--stop-after", "1h"]).model_copy(update={"epochs": 1})
    stop_at = command.saving.stop_at
    assert stop_at is not None
    assert before <= stop_at - 3600 <= time.monotonic()


def test_the_time_left_is_told_after_twenty_steps_and_when_steps_become_dearer(
    train: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 100.0, 200.0, 500.0])
    monkeypatch.setattr("engine.loop.time", SimpleNamespace(monotonic=lambda: next(clock)))
    assert train(tmp_path / "run", "--epochs", "4", "--sandwich.largest-first", "0.5") == 0
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("about ")]
    # 44 steps, 22 of the largest alone: looks at 10 and 20, then at 30 and 40.
    assert told == [
        "about 4m left: 24 steps of 10 s; evaluations come on top",
        "about 2m left: 4 steps of 30 s; evaluations come on top",
    ]


def test_a_training_may_choose_otherwise_from_the_weights_it_starts_from(
    trained_run: Path, tmp_path: Path
) -> None:
    source = TrainedSupernet(trained_run, torch.device("cpu"))
    values = source.space.model_dump(mode="json")
    values["resolution"], stage = values["resolution"][-1:], values["stages"][1]
    deepest = stage["depth"][-1]
    stage |= {"depth": [deepest], "expand": stage["expand"][-1:]}
    path = tmp_path / "narrow.yaml"
    path.write_text(yaml.safe_dump(values))
    _, narrow = open_source(trained_run, str(path))
    assert narrow.space == Space.model_validate(values)
    x, arch = torch.randn(2, 1, 16, 16), largest(narrow.space)
    assert torch.equal(narrow(x, arch), source.supernet(x, arch))
    stage["depth"] = [deepest + 1]
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=r"\(stages.1.* is the first that differs\); give one with"):
        open_source(trained_run, str(path))


def test_few_steps_of_many_images_are_advised_against() -> None:
    config = parse(Train, ["--config", "ofa/cifar10"])
    said = advise_on_steps(630, config)
    assert said.startswith("630 steps") and "--batch-size 32 --sgd.lr 0.1 makes 4.0 times" in said
    assert "--sandwich.largest-first 0.8" in said
    follows = parse(Train, ["--config", "ofa/cifar10", "--sandwich.largest-first", "0.5"])
    assert "largest-first" not in advise_on_steps(630, follows)
    assert "3 steps in all" in advise_on_steps(3, config)
    assert not advise_on_steps(2000, config)
    assert not advise_on_steps(630, parse(Train, ["--batch-size", "64"]))
