"""Formats of runtimes that need not be installed: what can be told of them without."""

import json
from pathlib import Path

import pytest

from engine.errors import UserError
from engine.run import digest
from export.formats import FORMATS, format_of
from export.formats.mlpackage import _with_fixed_names
from export.formats.mnn import _with_fixed_name
from export.formats.ncnn import _damage, _image_shape, _with_shape
from export.formats.qnn import CHIP_IN_FILE, CHIPS
from export.manifest import Compiled, manifest_path, read_manifest
from export.targets import TARGETS, find_target
from export.targets.target import Target

PARAM = "7767517\n2 2\nInput in0 0 1 in0\nConvolution conv_0 1 1 in0 out0 0=4\n"


def test_no_two_targets_write_the_same_file_or_manifest() -> None:
    files = [Path(target.file_name("600M")) for target in TARGETS]
    names = [*files, *(manifest_path(file) for file in files)]
    for file in files:
        names += format_of(file).side_files(file)
    assert len(set(names)) == len(names)
    for file, target in zip(files, TARGETS, strict=True):
        assert format_of(file).name == target.format


@pytest.mark.parametrize(
    ("target", "file", "manifest"),
    [
        ("litert", "600M.tflite", "600M.litert.json"),
        ("litert-int8", "600M.litert-int8.tflite", "600M.litert-int8.litert.json"),
        ("mlpackage", "600M.mlpackage.zip", "600M.mlpackage.json"),
        ("ncnn", "600M.ncnn.param", "600M.ncnn.json"),
        ("mnn", "600M.mnn", "600M.mnn.json"),
        ("qnn-sm8650", "600M.qnn-sm8650.qnn", "600M.qnn-sm8650.context.json"),
    ],
)
def test_names(target: str, file: str, manifest: str) -> None:
    assert find_target(target).file_name("600M") == file
    assert manifest_path(Path(file)).name == manifest


def test_every_extra_is_in_pyproject_and_named_by_its_targets() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    for member in FORMATS:
        if member.extra is not None:
            assert f"\n{member.extra} = [" in text
            whys = [" ".join(target.why) for target in TARGETS if target.format == member.name]
            assert whys and all(member.extra in why for why in whys)


def test_a_chip_is_of_formats_that_are_compiled() -> None:
    values = {"name": "x", "runs_on": "x", "batch": "one", "why": ("x",)}
    assert Target(format="qnn", precision="int8", chip="SM8350", **values).chip == "SM8350"
    with pytest.raises(ValueError, match=r"format qnn is not compiled for 'SM1'; valid are: SM8650, "):
        Target(format="qnn", precision="int8", chip="SM1", **values)
    with pytest.raises(ValueError, match=r"format ncnn is not compiled for 'SM8350'; valid are: none"):
        Target(format="ncnn", chip="SM8350", **values)
    with pytest.raises(ValueError, match="format qnn cannot be float32"):
        Target(format="qnn", **values)
    assert {target.chip for target in TARGETS if target.format == "qnn"} <= set(CHIPS)


def test_what_the_compiler_made_is_a_sentence() -> None:
    whole = Compiled(chip="SM8650", npu="v75", contexts=1, outside=())
    assert str(whole) == "one context for SM8650 (v75)"
    split = Compiled(chip="SM8650", npu="v75", contexts=2, outside=("Softmax", "Erf", "Erf"))
    assert str(split) == "2 contexts, 3 nodes outside (Erf, Softmax) for SM8650 (v75)"
    found = CHIP_IN_FILE.search(b"\x00a;soc_type=SM8650;arch=75;num_nsps=1")
    assert found is not None and found.groups() == (b"SM8650", b"75")


def test_a_file_of_two_parts_is_checked_as_a_whole(tmp_path: Path, exported: Path) -> None:
    path, weights = tmp_path / "x.ncnn.param", tmp_path / "x.ncnn.bin"
    path.write_text(PARAM)
    weights.write_bytes(b"1234")
    values = json.loads((exported / "largest.json").read_text())
    values |= {"file": path.name, "bytes": len(PARAM) + 4, "sha256": digest(path, weights)}
    manifest_path(path).write_text(json.dumps(values))
    assert read_manifest(path).bytes == len(PARAM) + 4
    weights.write_bytes(b"1235")
    with pytest.raises(UserError, match="not, byte for byte, the file that was verified"):
        read_manifest(path)
    weights.write_bytes(b"123")
    with pytest.raises(UserError, match="truncated or changed"):
        read_manifest(path)
    weights.unlink()
    with pytest.raises(UserError, match=r"has no 'x\.ncnn\.bin' beside it, which is a part of it; copy that"):
        read_manifest(path)


def test_ncnn_text_says_its_input_and_whether_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.ncnn.param"
    path.write_text(_with_shape(PARAM, [1, 3, 20, 30]))
    assert _image_shape(path) == [1, 3, 20, 30] and _damage(path.read_bytes()) == ""
    for bad, reason in (
        (b"", "does not begin"),
        (b"hello", "does not begin"),
        (PARAM.encode()[:-5], "ends within a line"),
        (PARAM.encode()[: PARAM.index("Conv")], "1 of 2 layers"),
    ):
        assert reason in _damage(bad)
    path.write_text(PARAM)
    with pytest.raises(ValueError, match="not one image of a fixed size"):
        _image_shape(path)


def test_random_names_in_files_become_fixed() -> None:
    first, second = "46abd970-81cd-444a-ae0d-edcfc86f1e67", "565e087f-7698-45fc-8c8e-bedf6d50e740"
    content = _with_fixed_name(f"a{first}b".encode())
    assert content == _with_fixed_name(f"a{second}b".encode()) and len(content) == 38
    assert content != _with_fixed_name(f"a{first}c".encode())[:-1] + b"b"

    def package(one: str, other: str) -> bytes:
        entries = {one: {"path": "b/model"}, other: {"path": "a/weights"}}
        return json.dumps({"itemInfoEntries": entries, "rootModelIdentifier": one}).encode()

    fixed = _with_fixed_names(package(first, second))
    assert fixed == _with_fixed_names(package(second, first))
    values = json.loads(fixed)
    assert values["itemInfoEntries"][values["rootModelIdentifier"]]["path"] == "b/model"
