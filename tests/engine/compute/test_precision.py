"""Precision is what was chosen, in training, and float32 without TF32 wherever a network is judged."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from pretended_gpu import pretended_gpu
from torch import Tensor, nn

from engine.command.cli import parse
from engine.compute import device as devices
from engine.compute.device import device_facts
from engine.compute.evaluation import accuracy, confusion, evaluation_batch
from engine.compute.precision import (
    Switches,
    TrainingPrecision,
    autocast,
    describe_precision,
    float32_as_exported,
    precision_on,
    switches,
    training_in,
)
from engine.data.digits import Digits
from engine.data.sources import load_data
from engine.errors import UserError
from engine.run import read_json
from engine.training import TrainingCommand
from ofa.calibration import calibrate
from ofa.quantization import rounded_subnet
from ofa.space.arch import largest
from ofa.space.space import Space
from ofa.subnet import Subnet, extract
from ofa.supernet import Supernet
from ofa.train import Train
from ofa.training.tuning import tuning_recipe
from ofa.training.tuning_loop import TuningSettings
from oneshot.language import cross_entropy
from oneshot.networks.recurrent import KIND, CellNetwork
from oneshot.objectives.images import ImageLoss
from oneshot.retrain import Retrain
from oneshot.search import Search
from oneshot.spaces.read_genotype import find_genotype

ROOT = Path(__file__).parents[3]
CPU, CUDA, SECOND = torch.device("cpu"), torch.device("cuda", 0), torch.device("cuda", 1)
EXACT, ROUNDED = ("ieee", "ieee", "ieee"), ("tf32", "tf32", "tf32")


class Seen(NamedTuple):
    """What a layer computes in: the type of its output, and how float32 is rounded on a GPU."""

    dtype: torch.dtype
    float32: tuple[str, str, str]


class Watch(nn.Module):
    """A layer that notes what it computes in."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[Seen] = set()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        self.seen.add(Seen(y.dtype, switches()[:3]))
        return y


def older_switches() -> tuple[bool, bool, str]:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    return cudnn.allow_tf32, matmul.allow_tf32, torch.get_float32_matmul_precision()


@pytest.mark.parametrize(
    ("precision", "rounding", "older"),
    [
        ("float32", EXACT, (False, False, "highest")),
        ("tf32", ROUNDED, (True, True, "high")),
        ("bf16", ROUNDED, (True, True, "high")),
    ],
)
def test_switches_are_set_for_a_block_and_put_back(
    precision: TrainingPrecision, rounding: tuple[str, str, str], older: tuple[bool, bool, str]
) -> None:
    before = switches(), older_switches()
    with training_in(precision, static_shapes=True):
        assert switches() == Switches(*rounding, benchmark=True)
        # Code that reads the older switches, torch's compiler among it, is not refused by torch.
        assert older_switches() == older
        # A measurement in the middle of a training.
        with float32_as_exported():
            assert switches() == Switches(*EXACT, benchmark=False)
        assert switches() == Switches(*rounding, benchmark=True)
    assert (switches(), older_switches()) == before


def test_switches_are_put_back_after_an_error() -> None:
    before = switches(), older_switches()
    error = RuntimeError("in a step")

    def fail() -> None:
        with training_in("bf16"), float32_as_exported():
            raise error

    with pytest.raises(RuntimeError, match="in a step"):
        fail()
    assert (switches(), older_switches()) == before
    assert not isinstance(autocast(CPU), torch.autocast)


def test_layers_compute_in_what_was_chosen() -> None:
    x, found = torch.ones(2, 4), {}
    precisions: tuple[TrainingPrecision, ...] = ("float32", "tf32", "bf16")
    for precision in precisions:
        watch = Watch()
        with training_in(precision), autocast(CPU):
            watch(x)
        found[precision] = watch.seen
    assert found == {
        "float32": {Seen(torch.float32, EXACT)},
        "tf32": {Seen(torch.float32, ROUNDED)},
        "bf16": {Seen(torch.bfloat16, ROUNDED)},
    }


def beside(watch: Watch) -> Callable[..., None]:
    """A hook that runs the watch wherever a layer runs."""

    def hook(*_: Any) -> None:
        watch(torch.ones(2, 4))

    return hook


def judge_accuracy(watch: Watch) -> None:
    accuracy(watch, [(torch.ones(2, 4), torch.zeros(2, dtype=torch.int64))])


def judge_confusion(watch: Watch) -> None:
    confusion(watch, [(torch.ones(2, 4), torch.zeros(2, dtype=torch.int64))], 3)


def judge_calibration(watch: Watch, space: Space) -> None:
    """BatchNorm's statistics of a subnet, whose classifier notes what it computes in."""
    subnet = extract(Supernet(space, 3, 1), largest(space))
    subnet.classifier.register_forward_hook(beside(watch))
    calibrate(subnet, [(torch.ones(4, 1, 8, 8), torch.zeros(4))])


def judge_ranges(watch: Watch, space: Space) -> None:
    """The ranges of a subnet in 8 bits."""
    data = load_data(Digits(), CPU, 0)
    subnet = extract(Supernet(space, 10, 1), largest(space)).eval()
    subnet.classifier.register_forward_hook(beside(watch))
    rounded_subnet(subnet, data)


def judge_text(watch: Watch) -> None:
    """A recurrent cell on a text."""
    network = CellNetwork(20, 8, find_genotype("DARTS_V2_recurrent").cells[KIND])
    network.register_forward_hook(beside(watch))
    cross_entropy(network, torch.arange(20), 1, 5)


JUDGES: dict[str, Callable[..., None]] = {
    "accuracy": judge_accuracy,
    "confusion": judge_confusion,
    "calibration": judge_calibration,
    "8-bit ranges": judge_ranges,
    "text": judge_text,
}


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize("name", JUDGES)
def test_what_is_judged_is_float32_in_any_training(
    name: str, precision: TrainingPrecision, tiny: Space
) -> None:
    judge, watch = JUDGES[name], Watch()
    inputs = (watch, tiny) if name in ("calibration", "8-bit ranges") else (watch,)
    # Even where a caller's own mixed precision is on.
    with training_in(precision), torch.autocast("cpu", torch.bfloat16):
        judge(*inputs)
    assert watch.seen == {Seen(torch.float32, EXACT)}
    # Nor does it follow torch's default outside of a training, where convolutions may round to TF32.
    watch.seen.clear()
    judge(*inputs)
    assert watch.seen == {Seen(torch.float32, EXACT)}


def test_the_loss_of_a_search_is_float32_and_its_layers_are_not() -> None:
    watch = Watch()

    class Network(nn.Module):
        def forward(self, x: Tensor, edge_weights: Any, create_graph: bool) -> Tensor:
            return watch(x)

    batch = torch.ones(2, 4), torch.zeros(2, dtype=torch.int64)
    with training_in("bf16"):
        loss = ImageLoss(Network())(batch, {})
    assert watch.seen == {Seen(torch.bfloat16, ROUNDED)}
    assert loss.dtype == torch.float32


def capability(monkeypatch: pytest.MonkeyPatch, found: tuple[int, int], hip: str | None = None) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: found)
    monkeypatch.setattr(torch.version, "hip", hip)


@pytest.mark.parametrize(
    ("found", "hip", "wanted"),
    [
        ((9, 0), None, {"bf16": "bf16", "tf32": "tf32", "float32": "float32"}),
        ((8, 0), None, {"bf16": "bf16", "tf32": "tf32", "float32": "float32"}),
        ((7, 5), None, {"bf16": "float32", "tf32": "float32", "float32": "float32"}),
        ((9, 4), "6.4", {"bf16": "bf16", "tf32": "float32", "float32": "float32"}),
    ],
)
def test_a_gpu_gives_the_best_that_it_has(
    found: tuple[int, int],
    hip: str | None,
    wanted: dict[TrainingPrecision, TrainingPrecision],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    capability(monkeypatch, found, hip)
    for asked, precision in wanted.items():
        # Asked for, or usual: it is the same on a GPU, and a sentence says where it is not what is wanted.
        assert precision_on(CUDA, asked, "float32") == precision_on(CUDA, None, asked) == precision
        said = describe_precision(CUDA, precision, None, asked)
        assert bool(said) == (precision != asked)
        assert not said or f"compute in {precision}, since device cuda:0 does not train in {asked}" in said


@pytest.mark.parametrize("device", [CPU, torch.device("mps")])
def test_other_devices_train_in_float32(device: torch.device) -> None:
    for usual in ("tf32", "bf16"):
        assert precision_on(device, None, usual, cpu_has_bf16=True) == "float32"
        assert not describe_precision(device, "float32", None, usual), "nobody asked for anything"
        assert precision_on(device, usual, "tf32") == "float32"
        assert f"does not train in {usual}" in describe_precision(device, "float32", usual, "tf32")


def test_a_cpu_computes_in_bfloat16_for_who_asks() -> None:
    assert precision_on(CPU, "bf16", "tf32", cpu_has_bf16=True) == "bf16"
    # Of a command that trains so only on a GPU.
    assert precision_on(CPU, "bf16", "bf16") == "float32"


class Started(NamedTuple):
    """What a command had set when its work began, and what env.json says."""

    now: Switches
    bf16: bool
    facts: dict[str, Any]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Started]]:
    """Starts a command up to the beginning of its work, on a GPU that is not there."""
    seen: list[Started] = []

    def note(device: torch.device, precision: TrainingPrecision) -> int:
        now, layers = switches(), isinstance(autocast(device), torch.autocast)
        seen.append(Started(now, layers, device_facts(device, precision)))
        return 0

    def training(self: TrainingCommand, ranks: Any, device: torch.device) -> int:
        return note(device, self.precision_on(device))

    monkeypatch.setattr(Train, "train", training)
    monkeypatch.setattr(Retrain, "train", training)
    monkeypatch.setattr(Search, "_search_on", lambda self, device, precision, *_: note(device, precision))

    def start(command: type[Any], *flags: str) -> Started:
        assert parse(command, ["--out", "run", *flags]).execute() == 0
        return seen[-1]

    with pretended_gpu(ROOT):
        yield start


@pytest.mark.parametrize(
    ("command", "flags", "precision", "benchmark"),
    [
        (Train, (), "bf16", False),
        (Train, ("--precision", "tf32"), "tf32", False),
        (Train, ("--precision", "float32"), "float32", False),
        (Retrain, (), "tf32", True),
        (Retrain, ("--precision", "bf16"), "bf16", True),
        (Search, (), "tf32", True),
        (Search, ("--precision", "float32"), "float32", True),
        (Search, ("--precision", "bf16"), "bf16", True),
    ],
)
def test_commands_on_a_gpu(
    started: Callable[..., Started],
    command: type[Any],
    flags: tuple[str, ...],
    precision: TrainingPrecision,
    benchmark: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = started(command, "--device", "cuda", *flags)
    rounding = EXACT if precision == "float32" else ROUNDED
    # Shapes of a supernet change in each step: there cuDNN would try its kernels again and again.
    assert found.now == Switches(*rounding, benchmark=benchmark)
    assert found.bf16 == (precision == "bf16")
    assert found.facts["precision"] == precision
    assert found.facts["float32"] == {"convolutions": rounding[0], "matrix_products": rounding[2]}
    assert found.facts["cudnn_benchmark"] == benchmark
    warned = "gradient of the architecture turns" in capsys.readouterr().out
    assert warned == (command is Search and precision == "bf16")
    assert switches().benchmark is False, "what a command set ends with it"


@pytest.mark.parametrize(("command", "kept"), [(Train, False), (Retrain, True), (Search, True)])
def test_commands_on_a_cpu(
    started: Callable[..., Started], command: type[Any], kept: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not started(command, "--device", "cpu").bf16
    assert "compute in" not in capsys.readouterr().out
    assert started(command, "--device", "cpu", "--precision", "bf16").bf16 == kept
    assert ("since device cpu does not train in bf16 here" in capsys.readouterr().out) == (not kept)


def test_a_tuning_takes_the_precision_of_its_run() -> None:
    assert tuning_recipe({"precision": "float32"}) == {"precision": "float32"}
    assert TuningSettings.usual_precision == Train.usual_precision == "bf16"


def test_text_has_no_bfloat16() -> None:
    text = ("--precision", "bf16", "--data", "grammar")
    with pytest.raises(UserError, match="recurrent cell is trained in float32 or tf32"):
        parse(Search, ["--space", "recurrent", *text])
    with pytest.raises(UserError, match="recurrent cell is trained in float32 or tf32"):
        parse(Retrain, ["--genotype", "DARTS_V2_recurrent", "--device", "cpu", *text]).execute()


def test_env_json_names_the_gpu_that_computes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = {0: "the first", 1: "the second"}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: names[device.index])
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002, raising=False)
    driver = tmp_path / "version"
    driver.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22 2024\nGCC 12\n")
    monkeypatch.setattr(devices, "DRIVER", driver)
    facts = device_facts(SECOND, "tf32")
    assert (facts["device"], facts["gpu"]) == ("cuda:1", "the second")
    assert facts["cuda"] == {"runtime": torch.version.cuda, "cudnn": 91002, "driver": "550.54.14"}
    driver.write_text("")
    assert device_facts(SECOND, "tf32")["cuda"]["driver"] is None
    assert device_facts(CPU, "float32") == {
        "threads": torch.get_num_threads(),
        "device": "cpu",
        "precision": "float32",
    }


def test_a_gpu_that_is_named_becomes_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    current = []
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)  # as if the GPUs were there
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    for name in ("cuda", "cuda:1", "cpu"):
        devices.pick_device(name)
    assert current == [SECOND]


@pytest.mark.parametrize(
    ("gibibytes", "size", "batch"),
    [(80, 32, 1024), (80, 224, 256), (24, 224, 64), (16, 224, 64), (16, 128, 256), (4, 600, 64)],
)
def test_an_evaluation_fills_a_quarter_of_a_gpu(
    gibibytes: int, size: int, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    properties = SimpleNamespace(total_memory=gibibytes * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert evaluation_batch(CUDA, size) == batch
    assert evaluation_batch(CPU, size) == 64
    assert evaluation_batch(CPU, size, on_cpu=250) == 250
    # Networks of cells need four times as much.
    assert evaluation_batch(CUDA, 2 * size) == evaluation_batch(CUDA, size, bytes_a_pixel=4096)


def test_an_accuracy_does_not_depend_on_the_batch(tiny: Space) -> None:
    data = load_data(Digits(), CPU, 0)
    subnet = extract(Supernet(tiny, 10, 1), largest(tiny)).eval()
    found = [confusion(subnet, data.batches("val", size), 10) for size in (64, 256)]
    assert (found[0] == found[1]).all()


def test_a_confusion_waits_for_the_gpu_once() -> None:
    layer = nn.Linear(4, 3)
    with pretended_gpu(ROOT) as gpu:
        layer.to(CUDA)
        batch = torch.ones(2, 4, device=CUDA), torch.zeros(2, dtype=torch.int64, device=CUDA)
        with gpu.record():
            confusion(layer, [batch] * 3, 3)
    assert sum(gpu.syncs.values()) == 1, gpu.syncs


@pytest.mark.slow
def test_a_supernet_trains_in_bfloat16_and_is_measured_in_float32(
    tiny_yaml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole command on a GPU that is not there, evaluation in the middle of the training."""
    seen: dict[str, set[Seen]] = {"train": set(), "measure": set()}
    for kind, name in ((Supernet, "train"), (Subnet, "measure")):

        def forward(self: Any, *inputs: Any, original: Any = kind.forward, name: str = name) -> Tensor:
            logits: Tensor = original(self, *inputs)
            seen[name].add(Seen(logits.dtype, switches()[:3]))
            return logits

        monkeypatch.setattr(kind, "forward", forward)
    flags = ["--space", str(tiny_yaml), "--epochs", "2", "--evaluate-every", "1", "--batch-size", "512"]
    flags += ["--evaluate-random", "0", "--calibration-images", "64", "--ema", "0.9", "--data.mixup", "0.2"]
    with pretended_gpu(ROOT):
        assert parse(Train, [*flags, "--out", "run", "--device", "cuda"]).execute() == 0
    assert seen["train"] == {Seen(torch.bfloat16, ROUNDED)}
    assert seen["measure"] == {Seen(torch.float32, EXACT)}
    facts = read_json(Path("run/env.json"))
    assert (facts["device"], facts["gpu"], facts["precision"]) == ("cuda", "pretended", "bf16")
    assert facts["float32"] == {"convolutions": "tf32", "matrix_products": "tf32"}
