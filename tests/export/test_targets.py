"""Every target's file keeps what the target promises, and computes the same."""

from pathlib import Path

import onnx
import onnxruntime as ort
import pytest
import torch
from networks import randomised, shaken
from onnxruntime.tools.mobile_helpers import usability_checker
from torch import Tensor, nn

from engine.command.cli import parse
from engine.errors import UserError
from engine.onnx_file import fold_batch_norm, to_proto
from export.graph.checks import names_this_machine
from export.graph.norms import fold_norms
from export.graph.operators import plain_operators
from export.manifest import exported_files, manifest_path, read_manifest
from export.targets import TARGETS, find_target, find_targets
from export.targets.__main__ import ShowTargets
from export.targets.target import Target
from ofa.space.space import load_space


def outputs(model: onnx.ModelProto, x: Tensor) -> Tensor:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"image": x.numpy()})[0])


def test_files_are_as_their_targets_say(exported: Path) -> None:
    for path in exported_files(exported):
        manifest, target = read_manifest(path), find_target(read_manifest(path).target)
        assert path.name == target.file_name(manifest.subnet)
        assert (manifest.input.shape[0] == 1) == (target.batch == "one")
        assert manifest.precision == target.precision
        assert (manifest.opset, manifest.ir_version <= target.ir) == (target.opset, True)
        if target.format == "onnx":
            model = onnx.load(path)
            domains = {entry.domain for entry in model.opset_import}
            assert domains == {node.domain for node in model.graph.node}, "and none that nobody needs"
            kinds = {node.op_type for node in model.graph.node}
            types = {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) == 4}
            assert target.activations == "native" or not kinds & {"HardSwish", "HardSigmoid", "ReduceMean"}
            wanted = {"float32": {1}, "float16": {10}, "int8": {3}}[target.precision]
            if manifest.quantization is not None and manifest.quantization["float_layers"]:
                # Which layers 8 bits hurt depends on the trained weights, and so on the version of torch.
                assert wanted <= types <= wanted | {1}
            else:
                assert types == wanted


def test_a_minimal_build_is_told_its_operators(exported: Path) -> None:
    lines = (exported / "largest.mobile.required_operators.config").read_text().splitlines()
    assert lines[0] == "# Generated from largest.mobile.ort"
    assert any(line.startswith("ai.onnx;") and "Conv" in line for line in lines)


@pytest.mark.slow
def test_hard_activations_as_arithmetic_are_equal_and_one_part_for_phones(tmp_path: Path) -> None:
    class Gate(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.hardswish(x) * nn.functional.hardsigmoid(x.mean((2, 3), keepdim=True))

    x = torch.randn(2, 3, 9, 9) * 4
    model = to_proto(
        nn.Sequential(Gate(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4)).eval(),
        x,
        any_batch=False,
    )
    before = outputs(model, x)
    plain_operators(model)
    torch.testing.assert_close(outputs(model, x), before, rtol=1e-6, atol=1e-6)
    net = randomised(load_space("digits"), 1)
    image = torch.zeros(1, 3, net.arch.resolution, net.arch.resolution)
    native = to_proto(net, image, any_batch=False)
    assert min(partitions(native, tmp_path)) > 5
    plain_operators(native)
    assert partitions(native, tmp_path) == [1, 1, 1]


def partitions(model: onnx.ModelProto, folder: Path) -> list[int]:
    """Parts of the graph that NNAPI and both kinds of CoreML would be given, as onnxruntime's own checker
    estimates."""
    onnx.save(model, folder / "x.onnx")
    shaped = usability_checker.ModelProtoWithShapeInfo(folder / "x.onnx").model_with_shape_info
    lists = "coreml_supported_mlprogram_ops.md", "coreml_supported_neuralnetwork_ops.md"
    found = [usability_checker.check_nnapi_partitions(shaped, True)]
    found += [usability_checker.check_coreml_partitions(shaped, True, name) for name in lists]
    return [info.num_partitions for info in found]


@pytest.mark.slow
def test_norms_that_no_convolution_precedes_are_folded_or_arithmetic() -> None:
    class Reduction(nn.Module):
        """DARTS's factorized reduction, then a norm behind a pool."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 1, stride=2, bias=False), nn.Conv2d(3, 5, 1, stride=2)
            self.joined, self.pooled = nn.BatchNorm2d(9, affine=False), nn.BatchNorm2d(9)

        def forward(self, x: Tensor) -> Tensor:
            x = self.joined(torch.cat([self.first(x), self.second(x[:, :, 1:, 1:])], 1))
            return self.pooled(nn.functional.avg_pool2d(x, 3)).mean((2, 3))

    net, x = shaken(Reduction()), torch.randn(2, 3, 12, 12)
    model = to_proto(net, x)
    assert sum(node.op_type == "BatchNormalization" for node in model.graph.node) == 2, (
        "else this tests nothing"
    )
    fold_norms(model)
    kinds = [node.op_type for node in model.graph.node]
    assert (kinds.count("BatchNormalization"), kinds.count("Mul")) == (0, 1), (
        "one folded, one written as arithmetic"
    )
    with torch.no_grad():
        torch.testing.assert_close(outputs(model, x), net(x), rtol=1e-5, atol=1e-5)


def test_folding_changes_nothing_and_leaves_the_original_alone() -> None:
    space = load_space("small32")
    net = randomised(
        type(space).model_validate(space.model_dump() | {"shortcut": "projected", "resolution": (16, 32)}), 2
    )
    x = torch.randn(3, 3, net.arch.resolution, net.arch.resolution)
    folded = fold_batch_norm(net)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), net(x), rtol=1e-4, atol=1e-4)
    assert any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())


def test_a_convolution_that_is_used_twice_is_not_folded() -> None:
    conv = nn.Conv2d(3, 3, 1)
    net = shaken(
        nn.Sequential(nn.Sequential(conv, nn.BatchNorm2d(3)), nn.Sequential(conv, nn.BatchNorm2d(3)))
    )
    x = torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(fold_batch_norm(net)(x), net(x), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_an_older_opset_is_refused_and_the_written_one_is_that_asked_for(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("{name: mine, runs_on: my board, opset: 17, why: [it is old]}")
    with pytest.raises(UserError, match="greater than or equal to 18"):
        find_target(str(tmp_path / "mine.yaml"))
    (tmp_path / "mine.yaml").write_text(
        "{name: mine, runs_on: my board, opset: 20, batch: one, why: [it is mine]}"
    )
    assert find_target(str(tmp_path / "mine.yaml")).opset == 20
    model = to_proto(
        nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).eval(),
        torch.zeros(1, 3, 2, 2),
        any_batch=False,
        opset=20,
    )
    assert [o.version for o in model.opset_import if o.domain == ""] == [20]


def test_no_two_targets_share_a_file_or_a_manifest() -> None:
    mine = [Target(name=name, runs_on="x", format=name, why=("x",)) for name in ("onnx", "ort")]
    paths = [Path(target.file_name("600M")) for target in (*TARGETS, *mine)]
    assert len(set(paths)) == len(paths)
    assert len({manifest_path(path) for path in paths}) == len(paths)
    assert find_target("cpu").file_name("600M") == "600M.onnx"
    assert find_target("nnapi").file_name("600M") == "600M.nnapi.onnx"
    assert find_target("executorch").file_name("600M") == "600M.pte"


def test_targets_are_found_once_each() -> None:
    assert [t.name for t in find_targets("nnapi, cpu-int8,nnapi")] == ["nnapi", "cpu-int8"]
    assert len({t.name for t in TARGETS}) == len(TARGETS)


def test_the_table_says_every_target_and_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(ShowTargets, []).execute() == 0
    said = capsys.readouterr().out
    for target in TARGETS:
        assert target.name in said and target.runs_on in said
        assert all(reason in said for reason in target.why)


def test_a_path_of_this_machine_is_seen() -> None:
    model = to_proto(
        nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).eval(), torch.zeros(1, 3, 2, 2), any_batch=False
    )
    assert not names_this_machine(model)
    model.graph.node[0].doc_string = "File /home/someone/net"
    assert names_this_machine(model)
    assert outputs(model, torch.zeros(1, 3, 2, 2)).isfinite().all()
