"""Exported files in the report: those of the selected subnets as they are now, with sizes and times."""

import json
from pathlib import Path

import pytest

from ofa.space.arch import Arch, largest, smallest
from ofa.space.space import Space
from predictors.reporting.exported import exported_section, format_megabytes, read_exported

OURS = "a" * 64


def write(folder: Path, arch: Arch, name: str = "60k.onnx", **values: object) -> None:
    """A file of 1,000 bytes and what export.onnx writes beside it, with other values for some keys."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(bytes(1000))
    facts: dict[str, object] = {
        "file": name,
        "subnet": "60k",
        "target": "cpu",
        "precision": "float32",
        "bytes": 1000,
        "milliseconds": 0.25,
        "accuracy": {"predicted": None, "torch": 0.9, "file": 0.9, "images": 504, "split": "val"},
        "weights_sha256": OURS,
        "architecture": {"kind": "ofa", "arch": arch.model_dump(mode="json")},
    }
    (folder / f"{Path(name).stem}.json").write_text(json.dumps(facts | values))


def read(run: Path, space: Space) -> list[str]:
    return [file.file for file in read_exported(run, space, {"60k": smallest(space)}, OURS)]


def test_files_with_size_and_times(tmp_path: Path, tiny: Space) -> None:
    write(tmp_path / "export", smallest(tiny))
    write(tmp_path / "export", smallest(tiny), "60k.nnapi.onnx", target="nnapi", accuracy=None)
    write(tmp_path / "export", smallest(tiny), "largest.onnx", subnet="largest")
    (tmp_path / "export" / "tokenizer.json").write_text("[1, 2]")  # of another program
    (tmp_path / "export" / "notes.json").write_text("{")
    head = "file,bytes,wall_p50,wall_p90,threads\n"
    # The second row is of a file that has another size now.
    (tmp_path / "export" / "benchmark.csv").write_text(
        head + "60k.onnx,1000,0.2,0.3,2\n60k.nnapi.onnx,5,9,9,2\n"
    )
    first, second = read_exported(tmp_path, tiny, {"60k": smallest(tiny)}, OURS)
    assert (first.file, first.p50_ms, first.p90_ms, first.threads) == ("60k.onnx", 0.2, 0.3, 2)
    assert (second.file, second.p50_ms, second.val_accuracy, second.milliseconds) == (
        "60k.nnapi.onnx",
        None,
        None,
        0.25,
    )
    page = "".join(exported_section([first, second]))
    for text in ("Exported files", "1 kB", "0.25 ms", "0.2 ms", "p90 0.3 ms", "threads: 2", "nnapi, float32"):
        assert text in page
    assert "benchmark" not in "".join(exported_section([second])).split("<tbody")[0], "no column of dashes"
    assert exported_section([]) == [] and read(tmp_path / "nowhere", tiny) == []


def test_files_of_something_else_are_left_out(
    tmp_path: Path, tiny: Space, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "export"
    for said, values in {
        "is of other weights": {"weights_sha256": "b" * 64},
        "is of another architecture than '60k' has now": {
            "architecture": {"arch": largest(tiny).model_dump(mode="json")}
        },
        "does not have the 999 bytes": {"bytes": 999},
        "does not say of which architecture": {"architecture": {"kind": "ofa"}},
        "is of another tuning than '60k' has now": {
            "architecture": {
                "arch": smallest(tiny).model_dump(mode="json"),
                "tuned": {"weights_sha256": "c" * 64},
            }
        },
    }.items():
        write(folder, smallest(tiny), **values)
        assert read(tmp_path, tiny) == []
        assert said in capsys.readouterr().out
    write(folder, smallest(tiny))
    (folder / "60k.onnx").unlink()
    assert read(tmp_path, tiny) == [] and "is not there" in capsys.readouterr().out


@pytest.mark.parametrize(
    "values",
    [
        {"file": "../../60k.onnx"},
        {"bytes": -1},
        {"milliseconds": "fast"},
        {"accuracy": {"file": 7, "images": 5}},
    ],
)
def test_a_damaged_manifest_is_one_sentence(tmp_path: Path, tiny: Space, values: dict[str, object]) -> None:
    write(tmp_path / "export", smallest(tiny), **values)
    with pytest.raises(ValueError, match=r"60k.json"):
        read(tmp_path, tiny)


def test_sizes() -> None:
    assert [format_megabytes(size) for size in (950, 77_900, 1_234_567)] == ["0.95 kB", "77.9 kB", "1.23 MB"]
