"""A bundle needs nothing else, prepares images as training did, is found damaged, and says nothing that its
manifest does not."""

import html
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from engine.command.cli import parse
from engine.config import format_count
from engine.data.augment import resize
from engine.data.dataset import Interpolation
from engine.data.folder import ImageFolder
from engine.data.sources import load_data
from engine.errors import UserError
from engine.run import Run
from engine.seed import numpy_generator
from engine.statistics import wilson_interval
from export.bundle.__main__ import MakeBundle
from export.bundle.card import render_card
from export.bundle.classify import classify, prepare_image
from export.bundle.contents import Bundle, Environment, read_bundle
from export.bundle.write import _commands, gather, portable, write_bundle
from export.formats import format_of
from ofa.space.published import find_arch
from ofa.trained import TrainedSupernet

ALONE = """
import runpy, sys

class OnlyThese:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in {*sys.stdlib_module_names, "numpy", "onnxruntime", "PIL"}:
            raise ImportError(f"a device has no {name}")

sys.meta_path.insert(0, OnlyThese())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def bundle(bundled_run: Path) -> Path:
    return bundled_run / "export" / "60k"


@pytest.fixture
def copy(bundled_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundled_run, tmp_path / "run"))


def test_what_is_in_it(bundle: Path, bundled_run: Path) -> None:
    files = ["60k.mobile.ort", "60k.mobile.required_operators.config", "60k.onnx"]
    assert sorted(p.name for p in bundle.iterdir()) == [
        *files,
        "Prepare.kt",
        "Prepare.swift",
        "README.md",
        "classify.py",
        "labels.txt",
        "manifest.json",
        *(f"sample{i}.{'jpg' if i <= 2 else 'png'}" for i in range(1, 9)),
        "samples.bin",
        "samples.json",
    ]
    for name in files:
        assert (bundle / name).read_bytes() == (bundled_run / "export" / name).read_bytes()
    assert (bundle / "labels.txt").read_text() == "".join(f"{d}\n" for d in range(10))
    known = read_bundle(bundle)
    assert [file.file for file in known.files] == ["60k.onnx", "60k.mobile.ort"], (
        "what any onnxruntime runs comes first"
    )
    assert set(known.sha256) == {p.name for p in bundle.iterdir()} - {"manifest.json"}
    assert known.provenance.seed == 0 and known.versions["torch"] == torch.__version__.partition("+")[0]
    assert (
        known.selection is not None
        and known.selection.pairs == 12
        and known.selection.predicted_accuracy == 0.5
    )
    assert set(known.benchmark) == {"60k.onnx"} and known.benchmark["60k.onnx"].threads == 1
    other = read_bundle(bundled_run / "export" / "largest")
    assert (other.selection, other.benchmark) == (None, {})


def test_nothing_in_it_names_a_folder_of_this_machine(bundle: Path, bundled_run: Path) -> None:
    for path in bundle.iterdir():
        assert str(bundled_run).encode() not in path.read_bytes()
        assert not re.search(rb"/(home|root|tmp|Users)/", path.read_bytes())
    assert (
        portable("python -m a --out /home/me/runs/x --data.path=/data/images y")
        == "python -m a --out x --data.path=images y"
    )


def test_the_command_that_bundles_is_written_as_it_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    env = Environment(command="ofa train", versions={}, git=None)
    monkeypatch.setenv("OFA_COMMAND", str(os.getpid()))
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", ModuleSpec("export.bundle.__main__", None))
    monkeypatch.setattr(sys, "argv", ["ofa bundle", "--run", "runs/x"])
    assert _commands(env, []) == ("ofa train", "ofa bundle --run runs/x")


@pytest.mark.parametrize(
    ("name", "file"), [("60k", "60k.onnx"), ("60k", "60k.mobile.ort"), ("largest", "largest.onnx")]
)
def test_the_example_runs_alone_and_says_what_torch_says(
    bundled_run: Path, tmp_path: Path, name: str, file: str
) -> None:
    """In a process without torch, this package, and all but three others; in a folder that was moved."""
    moved = shutil.copytree(bundled_run / "export" / name, tmp_path / "elsewhere")
    trained = TrainedSupernet(bundled_run, torch.device("cpu"))
    raw, _ = trained.data.splits["test"]  # type: ignore[attr-defined]
    Image.fromarray(raw[3, 0].numpy()).save(tmp_path / "digit.png")
    arch = find_arch(trained.space, "largest" if name == "largest" else "smallest")
    with torch.no_grad():
        wanted = torch.softmax(
            trained.subnet(arch)(resize(trained.data.normalise(raw[3:4]), arch.resolution)), 1
        )[0]
    words = [sys.executable, "-I", "-c", ALONE, str(moved / "classify.py"), str(tmp_path / "digit.png"), file]
    out = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    lines = [line.split("%  ") for line in out.splitlines()]
    assert len(lines) == 5
    for share, label in lines:
        assert float(share) == pytest.approx(
            100 * float(wanted[int(label)]), abs=1.0 if name == "largest" else 0.02
        )
    if name != "largest":  # whose pixels are rounded once more
        assert int(lines[0][1]) == int(wanted.argmax())


def test_without_a_model_named_the_first_is_taken(bundle: Path, tmp_path: Path) -> None:
    Image.new("L", (8, 8), 77).save(tmp_path / "x.png")
    runs = [
        [sys.executable, str(bundle / "classify.py"), str(tmp_path / "x.png"), *name]
        for name in ([], ["60k.onnx"])
    ]
    first, second = (
        subprocess.run(words, capture_output=True, text=True, check=True).stdout for words in runs
    )
    assert first == second
    done = subprocess.run(
        [sys.executable, str(bundle / "classify.py")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "python classify.py IMAGE [MODEL]" in done.stderr


def pictures(folder: Path) -> None:
    """Images of many sizes and kinds."""
    rng = np.random.default_rng(0)
    kinds = itertools.cycle(["RGB", "L", "RGBA", "P", "CMYK"])
    sizes = [(37, 53), (53, 37), (24, 24), (301, 200), (21, 90), (33, 33)]
    for split, label in itertools.product(("train", "test"), ("cat", "dog")):
        (folder / split / label).mkdir(parents=True)
        for i, (width, height) in enumerate(sizes):
            image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(
                next(kinds)
            )
            image.save(folder / split / label / (f"{i}.jpg" if image.mode == "CMYK" else f"{i}.png"))


@pytest.mark.parametrize(
    ("size", "resolution", "interpolation"),
    [(24, 24, "bicubic"), (24, 32, "bilinear"), (32, 20, "bicubic")],
)
def test_images_of_a_folder_are_prepared_as_training_does(
    tmp_path: Path, size: int, resolution: int, interpolation: Interpolation
) -> None:
    pictures(tmp_path)
    source = ImageFolder(name="imagefolder", path=tmp_path, size=size, workers=0, interpolation=interpolation)
    data = load_data(source, torch.device("cpu"), 0)
    x = torch.cat([resize(images, resolution) for images, _ in data.batches("test", 4)])
    how: dict[str, Any] = data.preprocessing() | {
        "resize": [resolution] * 2,
        "mean": data.mean,
        "std": data.std,
        "channels": "RGB",
    }
    files = {
        kind: {"preprocessing": how, "input": {"dtype": kind, "layout": layout}}
        for kind, layout in (("float32", "NCHW"), ("uint8", "NHWC"))
    }
    pixels = (x * torch.tensor(data.std)[:, None, None] + torch.tensor(data.mean)[:, None, None]) * 255
    order = numpy_generator(0, "plain", "test").permutation(data.count("test"))
    for i, (path, _) in enumerate(data.files["test"][k] for k in order):  # type: ignore[attr-defined]
        with Image.open(path) as image:
            ready = prepare_image(image, files["float32"])
            assert (ready.shape, ready.dtype) == ((1, 3, resolution, resolution), np.float32)
            np.testing.assert_allclose(ready[0], x[i].numpy(), atol=1e-5)
            ready = prepare_image(image, files["uint8"])
            assert (ready.shape, ready.dtype) == ((1, resolution, resolution, 3), np.uint8)
            assert (
                np.abs(ready[0].astype(float) - pixels[i].clamp(0, 255).permute(1, 2, 0).numpy()).max()
                <= 0.5 + 1e-3
            )


def test_an_image_of_another_size_is_made_the_datas_size(bundle: Path) -> None:
    file = json.loads((bundle / "manifest.json").read_text())["files"][0]
    run = format_of(bundle / "60k.onnx").open(bundle / "60k.onnx")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8))
    chances = classify(image, file, run)
    assert chances.shape == (10,) and chances.sum() == pytest.approx(1)


def numbers(text: str) -> set[str]:
    return set(re.findall(r"\d+(?:\.\d+)*(?:e-?\d+)?", text))


def leaves(value: Any, *path: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, *path, key)
    else:
        yield path, value


@pytest.mark.parametrize("name", ["60k", "largest"])
def test_every_number_of_the_card_is_in_the_manifest(bundled_run: Path, name: str) -> None:
    """As it stands there, rounded, as a percentage, as a count, or as an interval of Wilson."""
    folder = bundled_run / "export" / name
    text, manifest = (
        (folder / "README.md").read_text(),
        json.loads((folder / "manifest.json").read_text()),
    )
    assert text == render_card(Bundle.model_validate(manifest))
    known = {str(len(manifest["classes"]))} | numbers("Divide by 255, from 0, 90% interval")
    for _, value in leaves(manifest):
        known |= numbers(str(value))
        if isinstance(value, int | float):
            known |= numbers(f"{value:.3g} {value:.6g} {100 * value:.2f} {format_count(value)}")
    for file in manifest["files"]:
        low, high = wilson_interval(file["accuracy"]["file"], file["accuracy"]["images"])
        known |= numbers(f"{100 * low:.2f} {100 * high:.2f}")
    body = re.sub(r"^\d\. |SHA-256", "", text, flags=re.M)  # steps are numbered
    assert numbers(body) - known == set()
    assert ("predictor predicted 50.00%" in text) == ("was 37.50%" in text) == (name == "60k")
    assert ("predictor predicted 50.00%" in text and "macs of at most 60k" in text) == (name == "60k")


def test_a_hub_reads_the_head_of_the_card(bundle: Path) -> None:
    """By the hub's own package; a bundle is a folder to push, whose README.md is the card."""
    hub = pytest.importorskip("huggingface_hub")
    manifest = json.loads((bundle / "manifest.json").read_text())
    card = hub.ModelCard((bundle / "README.md").read_text(), ignore_metadata_errors=False)
    facts = card.data
    assert (facts.library_name, facts.pipeline_tag, facts.license) == (
        "onnx",
        "image-classification",
        "unknown",
    )
    assert facts.metrics == ["accuracy"] and {"onnx", "ort", "float32"} <= set(facts.tags)
    assert facts.model_name == "60k"
    for result, file in zip(facts.eval_results, manifest["files"], strict=True):
        assert (result.task_type, result.dataset_name) == ("image-classification", "digits")
        assert (result.dataset_split, result.metric_type) == ("val", "accuracy")
        assert result.metric_value == file["accuracy"]["file"]
        assert result.metric_name == f"top-1 of {file['file']} on 40 images"
    assert set(facts.to_dict()) <= {
        *("license", "license_name", "license_link", "library_name", "pipeline_tag", "tags", "metrics"),
        "model-index",
    }


@pytest.mark.parametrize(
    ("licence", "wanted"),
    [
        ("CC BY-NC 4.0", {"license": "cc-by-nc-4.0"}),
        ("Apache 2.0, if these are timm's default weights of that name", {"license": "apache-2.0"}),
        ("MIT", {"license": "mit"}),
        ("unknown", {"license": "unknown"}),
        ("Apple ASCL", {"license": "other", "license_name": "apple-ascl", "license_link": "https://a.org"}),
    ],
)
def test_the_head_has_the_licence_of_the_weights(bundle: Path, licence: str, wanted: dict[str, str]) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    origin = {"name": "net", "source": "x", "url": "https://a.org", "licence": licence, "sha256": None}
    manifest["files"][0]["weights"] = origin
    text = render_card(Bundle.model_validate(manifest))
    head = yaml.safe_load(text.split("---\n")[1])
    assert {key: value for key, value in head.items() if key.startswith("license")} == wanted
    assert ("It forbids commercial use, of this network too." in text) == ("NC" in licence)


def test_the_card_says_whose_weights_they_are(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert "The weights are the user's own" in render_card(Bundle.model_validate(manifest))
    origin = {"name": "net", "source": "a colleague", "url": None, "licence": "unknown", "sha256": None}
    manifest["files"][0]["weights"] = origin
    said = "started from the weights `net` of a colleague. Their licence: unknown: ask the source.\n"
    assert said in render_card(Bundle.model_validate(manifest))


def test_the_card_says_how_many_bits_a_file_has(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    quantization = {"float_layers": [], "layers": 5, "calibration_images": 99}
    for precision, said in (("int8", "in 8 bits whose"), ("a16w8", "in 16 bits, with weights of 8, whose")):
        manifest["files"][0] |= {"precision": precision, "quantization": quantization}
        assert f"computes {said} ranges come from 99" in render_card(Bundle.model_validate(manifest))
    tuned = {"epochs": 4, "teacher": "largest", "qat": "int8"}
    manifest["files"][0]["architecture"]["tuned"] = tuned
    said = "Tuned for 4 epochs after the supernet's training, rounded to int8 in the second half; "
    assert said in render_card(Bundle.model_validate(manifest))


HOSTILE = (
    *(
        "<script>alert(1)</script>",
        "[a](javascript:alert(1))",
        "![a](x)",
        "a|b",
        "`a`",
        "**a**",
        "_a_",
        "&lt;",
    ),
    *("<img src=x onerror=alert(1)>", "a\\", "~~a~~", "# a", "[/b]", "$x^"),
)


def test_the_card_shows_names_as_they_are(bundle: Path) -> None:
    """Neither as HTML nor as Markdown: what is left of it when both were read is the name."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    plain = render_card(Bundle.model_validate(manifest))
    manifest["classes"] = HOSTILE
    for file in manifest["files"]:
        file["classes"] = HOSTILE
        file["weights"] = {
            "name": "`<script>`",
            "source": HOSTILE[1],
            "url": HOSTILE[0],
            "licence": HOSTILE[2],
            "sha256": None,
        }
    manifest["provenance"]["versions"] = {"<script>": "[a](javascript:b)"}
    card = render_card(Bundle.model_validate(manifest))
    outside_of_code = re.sub(r"`[^`\n]*`|^    .*$", "", card, flags=re.M)
    assert "<" not in outside_of_code
    # Every mark of Markdown in a name stands behind a backslash.
    shown = next(line for line in card.splitlines() if "one a line in" in line)
    assert re.search(r"(?<!\\)[\[\]*~]|(?<!\\)!\[", shown) is None
    read = html.unescape(re.sub(r"\\([\\`*_\[\]|~#!])", r"\1", shown))
    assert read.split(": ", 1)[1] == ", ".join(HOSTILE) + "."
    assert card.count("\n| ") == plain.count("\n| ")


OTHER: dict[type, Any] = {
    bool: lambda b: not b,
    str: lambda s: s + "x",
    int: lambda n: 2 * n + 1,
    float: lambda x: x / 2 if x > 0.1 else x + 0.1,
}


def test_the_card_follows_every_fact_that_it_states(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    card = render_card(Bundle.model_validate(manifest))
    stated = {"subnet", "classes", "benchmark", "provenance", "versions", "selection"}
    stated_of_a_file = {
        "target",
        "precision",
        "bytes",
        "sha256",
        "macs",
        "params",
        "input",
        "output",
        "accuracy",
    }
    silent = {"predicted", "value"}  # said elsewhere, or part of how another fact is said
    count = 0
    for path, value in leaves(manifest):
        of_file = path[0] == "files" and path[1] == 0 and path[2] in stated_of_a_file
        if not (path[0] in stated or of_file) or path[-1] in silent or value is None:
            continue
        changed = json.loads(json.dumps(manifest))
        place = changed
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = OTHER[type(value)](value)
        assert render_card(Bundle.model_validate(changed)) != card, path
        count += 1
    assert count > 50


def test_a_changed_or_missing_file_is_found(copy: Path) -> None:
    folder = copy / "export" / "60k"
    content = bytearray((folder / "60k.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "60k.onnx").write_bytes(content)
    with pytest.raises(UserError, match=r"60k\.onnx' is not what was bundled \(SHA-256 differs\)"):
        read_bundle(folder)
    (folder / "60k.onnx").unlink()
    with pytest.raises(UserError, match=r"lacks '60k\.onnx'; copy the whole folder again"):
        read_bundle(folder)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="is not valid JSON"):
        read_bundle(folder)
    with pytest.raises(UserError, match=r"is no bundle \(it has no manifest\.json\)"):
        read_bundle(copy)


def test_a_manifest_cannot_name_files_outside_of_its_folder(copy: Path) -> None:
    path = copy / "export" / "60k" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"sha256": manifest["sha256"] | {"../60k.onnx": "0"}}))
    with pytest.raises(UserError, match=r"'\.\./60k\.onnx' is not the plain name"):
        read_bundle(path.parent)
    # The demo serves the files of this list, and hands them to a runtime.
    first = manifest["files"][0] | {"file": "/../../etc/passwd"}
    path.write_text(json.dumps(manifest | {"files": [first]}))
    with pytest.raises(UserError, match=r"/etc/passwd' is not the plain name"):
        read_bundle(path.parent)
    first = manifest["files"][0] | {"file": "other.onnx"}
    path.write_text(json.dumps(manifest | {"files": [first]}))
    with pytest.raises(UserError, match=r"no SHA-256 of 'other\.onnx'"):
        read_bundle(path.parent)


def test_bundling_again_replaces_in_one_step_and_a_failure_changes_nothing(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy / "export" / "60k"
    (folder / "README.md").write_text("old")
    monkeypatch.setattr("export.bundle.write.render_card", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        parse(MakeBundle, ["--run", str(copy), "--selected", "60k"]).execute()
    assert (folder / "README.md").read_text() == "old"
    monkeypatch.undo()
    assert parse(MakeBundle, ["--run", str(copy), "--selected", "60k"]).execute() == 0
    assert "\n# 60k\n" in (folder / "README.md").read_text()
    assert not [path for path in folder.parent.iterdir() if path.name.startswith(".")]


def test_what_does_not_belong_together_is_refused(copy: Path) -> None:
    words = ["--run", str(copy)]
    with pytest.raises(UserError, match="has no exported network '9M'; it has 60k, largest"):
        parse(MakeBundle, [*words, "--selected", "9M"]).execute()
    export, run = copy / "export", Run.open(copy)
    with pytest.raises(UserError, match="are not of this run's network"):
        gather(run, "60k", [export / "60k.onnx", export / "largest.onnx"])
    weights = (copy / "weights.safetensors").read_bytes()
    (copy / "weights.safetensors").write_bytes(weights[:-1] + b"x")
    with pytest.raises(UserError, match="are not of this run's network"):
        gather(run, "60k", [export / "60k.onnx"])
    (copy / "weights.safetensors").write_bytes(weights)
    (copy / "config.yaml").write_text((copy / "config.yaml").read_text() + "\n")
    with pytest.raises(UserError, match="are not of this run's network"):
        gather(run, "60k", [export / "60k.onnx"])
    shutil.rmtree(export / "60k")
    (export / "60k").mkdir()
    with pytest.raises(UserError, match="is there and is no bundle"):
        write_bundle(run, "60k", [export / "60k.onnx"])
    (export / "60k.onnx").write_bytes((export / "60k.onnx").read_bytes()[:-9])
    with pytest.raises(UserError, match="truncated or changed"):
        parse(MakeBundle, words).execute()
    shutil.rmtree(export)
    with pytest.raises(UserError, match=r"write one with python -m export\.onnx"):
        parse(MakeBundle, words).execute()


def test_a_choice_that_changed_since_and_damaged_timings(copy: Path) -> None:
    run, files = Run.open(copy), [copy / "export" / "60k.onnx"]
    facts = json.loads((copy / "selected" / "60k.json").read_text())
    facts["arch"]["resolution"] += 4
    (copy / "selected" / "60k.json").write_text(json.dumps(facts))
    assert gather(run, "60k", files).selection is None
    table = copy / "export" / "benchmark.csv"
    rows = table.read_text()
    table.write_text(rows.replace(str(files[0].stat().st_size), "1"))
    assert gather(run, "60k", files).benchmark == {}, "timed before it was exported again"
    table.write_text(
        re.sub(r"x86_64|aarch64|arm64", "", rows.replace("onnxruntime", "")).replace(",1,", ",,")
    )
    with pytest.raises(UserError, match=r"benchmark\.csv is damaged"):
        gather(run, "60k", files)


def test_the_example_names_the_files_that_it_runs(bundle: Path, tmp_path: Path) -> None:
    Image.new("L", (8, 8), 77).save(tmp_path / "x.png")
    words = [sys.executable, str(bundle / "classify.py"), str(tmp_path / "x.png"), "60k.pte"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip() == "onnxruntime does not run '60k.pte'; it runs: 60k.onnx, 60k.mobile.ort."
