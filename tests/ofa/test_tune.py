"""ofa.tune: its folders are runs, together is as alone, resume is bit for bit, stale weights are not used."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from test_train import same_weights
from torch import Tensor

from engine.checkpoint import load_weights, save_weights
from engine.command.cli import parse
from engine.errors import UserError
from engine.optim import SGD
from engine.run import read_json, read_lines
from ofa.evaluate import Evaluate
from ofa.quantization import int8_accuracy
from ofa.space.arch import Arch, largest, smallest
from ofa.trained import TrainedSupernet
from ofa.training.teacher import find_teacher
from ofa.training.tuning import single_network, tuning_recipe
from ofa.training.tuning_loop import Tuning
from ofa.tune import Tune
from ofa.tuned import TunedSubnet, find_tuned

CPU = torch.device("cpu")


def select_by_hand(run: Path, **archs: Arch) -> None:
    """Write selected/ as predictors.select does, as far as later stages need it."""
    for name, arch in archs.items():
        facts = {"arch": arch.model_dump(mode="json"), "macs": 1, "val_accuracy": 0.5}
        (run / "selected").mkdir(exist_ok=True)
        (run / "selected" / f"{name}.json").write_text(json.dumps(facts))


@pytest.fixture(scope="module")
def run(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two selected subnets."""
    copy = tmp_path_factory.mktemp("tune") / "run"
    names = ("selected", "tuned", "export", "report", "pairs.jsonl", "optuna.journal")
    shutil.copytree(trained_run, copy, ignore=shutil.ignore_patterns(*names))
    trained = TrainedSupernet(copy, CPU)
    select_by_hand(copy, small=smallest(trained.space), big=largest(trained.space))
    return copy


def tune(run: Path, *flags: str) -> int:
    words = ["--run", str(run), "--epochs", "2", "--evaluate-every", "1", "--device", "cpu", *flags]
    return parse(Tune, words).execute()


@pytest.fixture(scope="module")
def tuned(run: Path) -> Path:
    assert tune(run) == 0
    return run


@pytest.fixture(scope="module")
def together(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two subnets, tuned in one pass over the data, since the run's largest teaches both."""
    out = tmp_path_factory.mktemp("together")
    assert tune(run, "--teacher", "largest", "--out", str(out)) == 0
    return out


def arch_of(run: Path, name: str) -> Arch:
    return Arch.model_validate(read_json(run / "selected" / f"{name}.json")["arch"])


def test_a_tuned_folder_is_a_run_of_one_architecture(tuned: Path) -> None:
    names = {"config.yaml", "env.json", "metrics.jsonl", "model.json", "weights.safetensors", "DONE"}
    for name in ("small", "big"):
        assert names <= {path.name for path in (tuned / "tuned" / name).iterdir()}
    one = TrainedSupernet(tuned / "tuned" / "small", CPU)
    whole = TrainedSupernet(tuned, CPU)
    assert one.model.arch is not None
    assert one.cost(one.model.arch) == whole.cost(arch_of(tuned, "small"))
    # The same validation images, and the best of the evaluations was kept.
    points = read_lines(tuned / "tuned" / "small" / "metrics.jsonl")
    measured = [point["val_accuracy"] for point in points if "val_accuracy" in point]
    assert len(measured) == 3
    assert measured[0] == whole.accuracy(arch_of(tuned, "small"), "val")
    assert one.accuracy(one.model.arch, "val") == max(measured)


def test_settings_come_from_the_run(run: Path) -> None:
    settings = parse(Tune, ["--run", str(run), "--sgd.momentum", "0.5"])
    config = TrainedSupernet(run, CPU).run.config
    assert settings.sgd.lr == config["sgd"]["lr"] and settings.sgd.momentum == 0.5
    assert settings.sgd.schedule.name == "cosine"
    assert settings.data.model_dump() == config["data"]
    assert settings.label_smoothing == config["sandwich"]["label_smoothing"]


@pytest.mark.slow
def test_together_is_as_alone(run: Path, together: Path, tmp_path: Path) -> None:
    assert tune(run, "--selected", "small", "--out", str(tmp_path)) == 0  # a single subnet: the run's largest
    assert same_weights(tmp_path / "small", together / "small")


@pytest.mark.slow
def test_the_largest_needs_no_teacher_while_another_is_taught(together: Path) -> None:
    for name, is_taught in (("small", True), ("big", False)):  # big is its own teacher
        points = [p for p in read_lines(together / name / "metrics.jsonl") if "loss" in p]
        assert ("distillation" in points[0]) == is_taught


@pytest.mark.slow
def test_the_subnet_with_most_macs_is_tuned_first_and_teaches(tuned: Path, tmp_path: Path) -> None:
    teacher = tuned / "tuned" / "big"
    small = TrainedSupernet(tuned / "tuned" / "small", CPU)
    assert small.run.config["teacher"] == str(teacher)
    assert small.model.tuned is not None and small.model.tuned.teacher == "big"
    assert (teacher / "DONE").stat().st_mtime_ns < (small.run.path / "config.yaml").stat().st_mtime_ns
    assert tune(tuned, "--selected", "small", "--teacher", str(teacher), "--out", str(tmp_path)) == 0
    assert same_weights(tmp_path / "small", small.run.path)


@pytest.mark.slow
def test_a_resumed_subnet_keeps_its_teacher(
    run: Path, together: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A larger budget, selected later, teaches nobody that began without it."""
    shutil.copytree(together / "small", tmp_path / "small")
    assert tune(run, "--out", str(tmp_path), "--resume") == 0
    assert f"{tmp_path / 'small'} is finished already" in capsys.readouterr().out
    assert same_weights(tmp_path / "big", together / "big")


@pytest.mark.slow
def test_a_teacher_that_was_tuned_again_is_another_teacher(tuned: Path, tmp_path: Path) -> None:
    for name in ("small", "big"):
        shutil.copytree(tuned / "tuned" / name, tmp_path / name)
    words = ["--selected", "small", "--teacher", str(tmp_path / "big"), "--out", str(tmp_path)]
    assert tune(tuned, *words, "--overwrite") == 0
    path = tmp_path / "big" / "weights.safetensors"
    weights = load_weights(path)
    save_weights(path, {name: 2 * tensor for name, tensor in weights.items()})
    with pytest.raises(UserError, match=r"its teacher or the images of run .* changed"):
        tune(tuned, *words, "--resume")


@pytest.mark.slow
def test_a_tuned_subnet_that_is_worse_than_the_largest_teaches_nobody(
    run: Path, together: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = iter([0.5, 0.6])  # the tuned subnet, the largest
    monkeypatch.setattr("ofa.tune.accuracy", lambda *_: next(judged))
    assert tune(run, "--out", str(tmp_path)) == 0
    assert same_weights(tmp_path / "small", together / "small")


def test_another_seed_is_another_tuning_on_the_same_split(tuned: Path, tmp_path: Path) -> None:
    assert tune(tuned, "--selected", "big", "--seed", "1", "--out", str(tmp_path)) == 0
    first, second = (read_lines(at / "big" / "metrics.jsonl") for at in (tuned / "tuned", tmp_path))
    assert first[0] == second[0], "the untuned accuracy, on the same validation images"
    assert [p["loss"] for p in first if "loss" in p] != [p["loss"] for p in second if "loss" in p]


@pytest.mark.slow
def test_tuning_for_8_bits_keeps_what_is_best_in_8_bits_and_resumes(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--selected", "big", "--qat", "int8"]
    assert tune(run, *words, "--out", str(tmp_path / "whole")) == 0
    one = TrainedSupernet(tmp_path / "whole" / "big", CPU)
    assert one.model.arch is not None and one.model.tuned is not None and one.model.tuned.qat == "int8"
    points = read_lines(tmp_path / "whole" / "big" / "metrics.jsonl")
    measured = [point["val_accuracy"] for point in points if "val_accuracy" in point]
    rounded = int8_accuracy(one.subnet(one.model.arch), one.data, one.data.batches("val", 64))
    assert rounded == max(measured), "measured in 8 bits, as the file will compute"
    assert "rounded to int8" in str(TunedSubnet(tmp_path, one.model.tuned))
    original = Tuning.learn

    def learn(self: Tuning, x: Tensor, y: Tensor, taught: Tensor | None) -> None:
        original(self, x, y, taught)
        if self.step == 7:  # where it rounds already
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Tuning, "learn", learn)
    assert tune(run, *words, "--out", str(tmp_path / "parts")) == 130
    monkeypatch.undo()
    assert tune(run, *words, "--out", str(tmp_path / "parts"), "--resume") == 0
    assert same_weights(tmp_path / "parts" / "big", tmp_path / "whole" / "big")


@pytest.mark.slow
@pytest.mark.parametrize(("teacher_accuracy", "taught_epochs"), [(0.0, set()), (1.1, {0, 1})])
def test_a_teacher_teaches_until_the_subnet_is_as_good(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    teacher_accuracy: float,
    taught_epochs: set[int],
) -> None:
    original, stopping = Tuning.learn, True

    def learn(self: Tuning, x: Tensor, y: Tensor, taught: Tensor | None) -> None:
        original(self, x, y, taught)
        if stopping and self.epoch == 1 and self.batches_done == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Tuning, "learn", learn)
    monkeypatch.setattr("ofa.training.tuning_loop.accuracy", lambda *_: teacher_accuracy)
    words = ["--selected", "small", "--out", str(tmp_path)]
    # Interrupted in its second epoch: a resumed subnet still knows whether it has a teacher.
    assert tune(run, *words) == 130
    stopping = False
    assert tune(run, *words, "--resume") == 0
    points = [point for point in read_lines(tmp_path / "small" / "metrics.jsonl") if "loss" in point]
    assert {point["epoch"] for point in points} == {0, 1}
    assert {point["epoch"] for point in points if "distillation" in point} == taught_epochs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "stop_after"),
    # In the middle of an epoch, at its end, and in the last step of the one that teaches.
    [("big", 4), ("small", 4), ("small", 11), ("big", 22)],
)
def test_resume_is_bit_for_bit(
    tuned: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    stop_after: int,
) -> None:
    _stop_at(monkeypatch, name, stop_after)
    assert tune(tuned, "--out", str(tmp_path)) == 130
    said = capsys.readouterr().out
    assert "next: " not in said and ("not begun: small" in said) == (name == "big")
    assert not (tmp_path / "small" / "DONE").exists()
    assert tune(tuned, "--out", str(tmp_path), "--resume") == 0
    for folder in ("small", "big"):
        assert same_weights(tmp_path / folder, tuned / "tuned" / folder)


@pytest.mark.slow
def test_subnets_tuned_together_wait_for_the_one_that_is_behind(
    run: Path, together: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--teacher", "largest", "--out", str(tmp_path)]
    _stop_at(monkeypatch, "big", 4)
    assert tune(run, *words) == 130
    # As if the process had been killed between two checkpoints.
    (tmp_path / "small" / "state.pt").unlink()
    assert tune(run, *words, "--resume") == 0
    for name in ("small", "big"):
        assert same_weights(tmp_path / name, together / name)


def _stop_at(monkeypatch: pytest.MonkeyPatch, name: str, step: int) -> None:
    """Let a subnet's tuning be interrupted after a step, as by Ctrl-C."""
    original = Tuning.learn

    def learn(self: Tuning, x: Tensor, y: Tensor, taught: Tensor | None) -> None:
        original(self, x, y, taught)
        if self.name == name and self.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Tuning, "learn", learn)


def test_a_tuning_stops_after_its_time(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("tuned"))
    assert tune(copy, "--stop-after", "0.001s") == 130  # over before the first step ends
    assert "stopped at step 1 of" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--selected", "--arch"])
def test_no_epochs_only_recalibrate(flag: str, run: Path, tmp_path: Path) -> None:
    assert tune(run, flag, "small", "--epochs", "0", "--out", str(tmp_path)) == 0
    one, whole = TrainedSupernet(tmp_path / "small", CPU), TrainedSupernet(run, CPU)
    assert one.model.arch is not None and one.model.tuned is not None
    assert one.model.tuned.epochs == 0 and one.model.tuned.teacher == "none"
    x = torch.randn(4, 1, 12, 12)
    a, b = one.subnet(one.model.arch), whole.subnet(arch_of(run, "small"))
    size = one.model.arch.resolution
    torch.testing.assert_close(a(x[..., :size, :size]), b(x[..., :size, :size]))


def test_evaluate_prefers_tuned_weights_and_says_so(tuned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--run", str(tuned), "--arch", str(tuned / "selected" / "small.json")]
    assert parse(Evaluate, words).execute() == 0
    assert "tuned" in capsys.readouterr().out
    assert parse(Evaluate, [*words, "--untuned"]).execute() == 0
    assert "tuned for" not in capsys.readouterr().out


def test_weights_of_another_supernet_or_architecture_are_not_used(
    tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small, big = arch_of(tuned, "small"), arch_of(tuned, "big")
    found = find_tuned(tuned, "small", small)
    assert found is not None and "tuned for 2 epochs, teacher: big" in str(found)
    assert find_tuned(tuned, "other", small) is None and capsys.readouterr().out == ""
    assert find_tuned(tuned, "small", big) is None
    assert "another architecture" in capsys.readouterr().out
    copy = tmp_path / "run"
    shutil.copytree(tuned, copy)
    weights = load_weights(copy / "weights.safetensors")
    save_weights(copy / "weights.safetensors", {name: 2 * tensor for name, tensor in weights.items()})
    monkeypatch.setenv("OFA_COMMAND", str(os.getpid()))  # as the command `ofa` does
    assert find_tuned(copy, "small", small) is None
    out = capsys.readouterr().out
    assert "other weights" in out and f"with ofa tune --run {copy} --selected small --overwrite" in out


def test_a_finished_tuning_of_another_selection_is_refused(tuned: Path) -> None:
    before = (tuned / "selected" / "small.json").read_text()
    select_by_hand(tuned, small=arch_of(tuned, "big"))
    with pytest.raises(UserError, match=r"its teacher or the images of run .*--overwrite"):
        tune(tuned, "--selected", "small", "--resume")
    (tuned / "selected" / "small.json").write_text(before)
    assert tune(tuned, "--selected", "small", "--resume") == 0


def test_a_folder_in_use_is_refused_before_images_are_read(
    tuned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_data(*_: object) -> None:
        raise AssertionError("images were read")

    monkeypatch.setattr("engine.training.load_data", load_data)
    with pytest.raises(UserError, match="already holds a finished run"):
        tune(tuned)


def test_the_rate_is_that_of_the_run_or_of_its_last_phase() -> None:
    sgd = SGD(lr=0.3, weight_decay=1e-4, warmup_epochs=5).model_dump(mode="json")
    plain = tuning_recipe({"sgd": sgd, "phases": []})["sgd"]
    assert (plain["lr"], plain["weight_decay"], plain["schedule"]["name"]) == (0.3, 1e-4, "cosine")
    phases = [{"name": "largest", "lr": 0.65}, {"name": "expand", "lr": 0.06}]
    assert tuning_recipe({"sgd": sgd, "phases": phases})["sgd"]["lr"] == 0.06


def test_what_cannot_be_tuned_is_said_in_a_sentence(tuned: Path, tmp_path: Path) -> None:
    for flags in (("--data.val", "0.1"), ("--data.val", "0.3", "--split-seed", "5")):
        with pytest.raises(UserError, match="would train on some of them"):
            tune(tuned, *flags, "--out", str(tmp_path / "other"))
    with pytest.raises(UserError, match="no selected subnet '3M'; it has big, small"):
        tune(tuned, "--selected", "3M")
    with pytest.raises(UserError, match="not a supernet"):
        tune(tuned / "tuned" / "small", "--arch", "largest")
    with pytest.raises(UserError, match="--teacher-weights"):
        tune(tuned, "--teacher", "resnet18", "--out", str(tmp_path))
    with pytest.raises(UserError, match="name it with --teacher"):
        tune(tuned, "--teacher-size", "64", "--out", str(tmp_path))
    with pytest.raises(UserError, match="is not a run folder"):
        tune(tmp_path)


def test_teachers(tuned: Path, tmp_path: Path) -> None:
    data = TrainedSupernet(tuned, CPU).data
    x, _ = next(iter(data.batches("val", 4)))
    for name in ("", "tuned/small"):  # a supernet, and a run of one network
        assert find_teacher(str(tuned / name), None, None, data)(x).shape == (4, 10)
    with pytest.raises(UserError, match="leave out --teacher-size"):
        find_teacher(str(tuned), None, 32, data)
    path = tmp_path / "teacher.safetensors"
    module = torchvision.models.get_model("squeezenet1_1", weights=None, num_classes=10).eval()
    save_weights(path, module.state_dict())
    teacher = find_teacher("squeezenet1_1", path, 64, data)
    logits = teacher(x)
    # By hand: back to pixels, three equal channels, ImageNet's normalisation, the teacher's size.
    pixels = x * torch.tensor(data.std)[:, None, None] + torch.tensor(data.mean)[:, None, None]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    rgb = (pixels.expand(-1, 3, -1, -1) - mean[:, None, None]) / std[:, None, None]
    rgb = torch.nn.functional.interpolate(rgb, size=(64, 64), mode="bicubic")
    torch.testing.assert_close(logits, module(rgb).detach(), rtol=1e-4, atol=1e-4)
    assert not logits.requires_grad
    with pytest.raises(UserError, match=r"cannot take images of 8 pixels.*give another --teacher-size"):
        find_teacher("squeezenet1_1", path, 8, data)
    with pytest.raises(UserError, match="do not fit 'squeezenet1_0' with 10 classes"):
        find_teacher("squeezenet1_0", path, 64, data)
    with pytest.raises(UserError, match="no run folder, timm module or torchvision module 'nonsense'"):
        find_teacher("nonsense", path, None, data)


def test_a_network_alone_computes_what_the_supernet_does(trained_run: Path) -> None:
    trained = TrainedSupernet(trained_run, CPU)
    arch = smallest(trained.space)
    network = single_network(trained.supernet, arch)
    x = torch.randn(4, 1, 8, 8)
    torch.testing.assert_close(network(x, largest(network.space)), trained.supernet(x, arch))


def _tune_as_a_rank(words: list[str]) -> int:
    return parse(Tune, words).execute()


@pytest.mark.slow
def test_two_ranks_tune_together(run: Path, tmp_path: Path, pair: Any) -> None:
    words = ["--run", str(run), "--epochs", "1", "--device", "cpu", "--out", str(tmp_path)]
    assert pair(_tune_as_a_rank, words) == [0, 0]
    one = TrainedSupernet(tmp_path / "small", CPU)
    assert one.run.config["ranks"] == 2 and one.run.finished
