"""Files with the whole preparation in them take an image of any size, and prepare it as training did."""

import shutil
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from PIL import Image
from torch import nn

import export
from engine.command.cli import parse
from engine.errors import UserError
from export.bundle.classify import prepare_image
from export.formats.openvino import OpenVinoRuntime
from export.graph import preparation
from export.graph.preparation import check_preparation, images_to_try
from export.onnx import Export
from export.openvino import OpenVINO

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize(
    "crop",
    [
        export.CenterCrop(24),
        export.CenterCrop(24, interpolation="bilinear"),
        export.CenterCrop(24, 27, "bilinear"),
        export.CenterCrop(33, 36),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_graph_prepares_images_as_pillow_does(crop: export.CenterCrop, channels: int) -> None:
    assert check_preparation(crop, channels, 18) == ""


@pytest.mark.parametrize(
    ("old", "new"), [("-0.5", "-0.75"), ('"{mode}"', '"linear"'), ("half_pixel", "align_corners")]
)
def test_another_resize_is_found(monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    """The check is strict enough to tell the resizes that runtimes confuse."""
    monkeypatch.setattr(preparation, "PREPARATION", preparation.PREPARATION.replace(old, new))
    assert "differently from Pillow" in check_preparation(export.CenterCrop(24, 27), 3, 18)


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(36, 7)
    return nn.Sequential(*layers).eval()


def test_any_classifier_takes_images_of_any_size(network: nn.Module, tmp_path: Path) -> None:
    bake = export.Bake(MEAN, STD, crop=export.CenterCrop(24, 27))
    images = torch.randn(4, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    for name, target in (("a.onnx", "cpu"), ("b.onnx", "nnapi"), ("c.ort", "mobile")):
        manifest = export.to_onnx(network, tmp_path / name, target, images=images, bake=bake)
        assert manifest.input.shape == (1, "height", "width", 3) and manifest.output.shape == (1, 7)
        session = ort.InferenceSession(str(tmp_path / name))
        how = manifest.model_dump(mode="json")
        assert how["preprocessing"]["baked"] == "preprocessing"
        how["preprocessing"]["baked"], how["input"] = False, {"dtype": "float32", "layout": "NCHW"}
        for pixels in images_to_try(24, 3):
            (found,) = session.run(None, {"image": pixels[None]})
            x = torch.from_numpy(prepare_image(Image.fromarray(pixels), how))
            with torch.no_grad():
                wanted = network(x).numpy()
            # Some pixels may differ by one level.
            np.testing.assert_allclose(found, wanted, atol=5e-3)


def test_what_does_not_fit_is_a_sentence(network: nn.Module, tmp_path: Path) -> None:
    images = torch.randn(4, 3, 24, 24)
    for crop, layout, target, sentence in (
        (
            export.CenterCrop(32),
            "NHWC",
            "cpu",
            "of 32 x 32 pixels in the layout NHWC, but the network's have 24 x 24",
        ),
        (export.CenterCrop(24), "NCHW", "cpu", "the layout is NCHW"),
    ):
        bake = export.Bake(MEAN, STD, layout, crop=crop)  # type: ignore[arg-type]
        with pytest.raises(UserError, match=sentence):
            export.to_onnx(network, tmp_path / "x.onnx", target, images=images, bake=bake)


@pytest.mark.slow
def test_the_resize_to_a_subnets_side_goes_into_the_file(
    trained_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A file of a run does the data set's resize and the network's, and classifies as torch does."""
    # A copy: other tests read the files of this run.
    run = Path(shutil.copytree(trained_run, tmp_path / "run", ignore=shutil.ignore_patterns("export")))
    words = ["--run", str(run), "--arch", "largest", "--images", "30", "--bake", "preprocessing"]
    path = run / "export" / "largest.onnx"
    assert parse(Export, words[:-2]).execute() == 0
    assert parse(Export, words).execute() == 0
    out = capsys.readouterr().out
    assert out.count("largest.onnx took float32 NCHW (batch, 1, ") == 1, (
        "files of one kind replace each other"
    )
    assert "until now; the new file takes uint8 NHWC (1, height, width, 1)" in out
    manifest, content = export.read_manifest(path), path.read_bytes()
    how = manifest.preprocessing or {}
    side = how["image_size"]
    assert how["resize"] != [side, side], "otherwise this test shows nothing"
    assert manifest.accuracy is not None and manifest.accuracy.file == manifest.accuracy.torch
    assert manifest.parity["relative_error"] < 1e-4
    assert manifest.input.shape == (1, "height", "width", 1)
    session = ort.InferenceSession(content)
    for height, width in ((side, side), (3 * side, 2 * side), (side // 2, side)):
        pixels = np.random.default_rng(0).integers(0, 256, (1, height, width, 1), dtype=np.uint8)
        assert np.isfinite(session.run(None, {"image": pixels})[0]).all()
    monkeypatch.setattr(OpenVinoRuntime, "check_installed", lambda _: None)
    with pytest.raises(UserError, match="takes images of any size"):
        parse(OpenVINO, [str(path)]).execute()
