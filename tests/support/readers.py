"""Every reader of files from outside, with a file that it takes: for tests by chance and for the fuzzer.

Whatever bytes a reader gets, it returns or raises one of `EXPECTED`.
"""

import bz2
import io
import json
import pickle
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

import ofa.space.space
from engine.blocks.latency_table import LatencyTable, Noise, TimedNetwork
from engine.blocks.layers import layer_name
from engine.checkpoint import load_state, load_weights
from engine.config import read_yaml, validate
from engine.data.image_files import DAMAGED, open_image
from engine.data.npz import Npz
from engine.errors import UserError
from engine.model import ImageModel
from engine.run import read_json, read_lines
from engine.runs.listing import summarise
from export.bundle.classify import prepare_image
from export.bundle.contents import MANIFEST, read_bundle
from export.manifest import read_manifest
from export.targets import find_targets
from ofa.space.arch import smallest
from ofa.space.published import find_arch
from ofa.space.space import Space, load_space
from ofa.weights.reading import read_checkpoint
from oneshot.nasbench201.nats import read_nats
from oneshot.nasbench201.table import AccuracyTable
from oneshot.spaces.read_genotype import find_genotype
from predictors.accuracy.pairs import read_pairs, read_selected
from predictors.latency.kit import distinct_layers
from predictors.latency.model import load_latency
from predictors.latency.table import space_fingerprint
from predictors.latency.timings import build_table, read_timings

EXPECTED = (UserError, *DAMAGED)
LONGEST_SENTENCE = 7000  # characters
DARTS = "Genotype(normal=[('sep_conv_3x3', 0), ('skip_connect', 1)], normal_concat=range(2, 3), "
DARTS += "reduce=[('max_pool_3x3', 0), ('none', 1)], reduce_concat=[2])"
HOW = {"resize_shorter_side": 18, "center_crop": 16, "resize_interpolation": "bicubic", "resize": [12, 12]}
HOW |= {"channels": "RGB", "mean": [0.5] * 3, "std": [0.5] * 3}


class Reader(NamedTuple):
    """A reader of a file.

    name: of the file in a folder of its own, where its name matters.
    seed: bytes that it takes.
    read: reads the file at a path.
    """

    name: str
    seed: bytes
    read: Callable[[Path], object]


@cache
def space() -> Space:
    return load_space("resnet34")


def _image(kind: str, **words: object) -> bytes:
    file, exif = io.BytesIO(), Image.Exif()
    exif[274] = 6
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, kind, exif=exif, **words)
    return file.getvalue()


def _read_image(path: Path) -> object:
    open_image(path)
    with Image.open(path) as image:
        return prepare_image(image, {"preprocessing": HOW, "input": {"dtype": "uint8", "layout": "NHWC"}})


def _npz() -> bytes:
    file, x, y = io.BytesIO(), np.zeros((4, 2, 2), np.uint8), np.arange(4) % 2
    np.savez(file, x_train=x, y_train=y, x_test=x, y_test=y, classes=np.array(["a", "b"]))
    return file.getvalue()


def _arch() -> dict[str, object]:
    return smallest(space()).model_dump(mode="json")


def _pairs() -> bytes:
    pair = {"arch": _arch(), "val_accuracy": 0.5, "macs": 7, "params": 3}
    return (json.dumps(pair) + "\n").encode() * 2


def _table() -> bytes:
    table = LatencyTable(
        device="phone",
        runtime="onnxruntime",
        threads=1,
        clock="cpu",
        space=space().name,
        fingerprint=space_fingerprint(space()),
        classes=10,
        channels=3,
        resolutions=(224,),
        noise=Noise(rounds=1, reliability=None, relative=None),
        blocks={"stem": {224: 1.0}},
        networks=(TimedNetwork(codes="01" * len(space().columns), ms=1.0),),
    )
    return json.dumps(table.model_dump(mode="json")).encode()


def _read_table(path: Path) -> object:
    return load_latency(path, space(), 10, 3)


def _timings() -> bytes:
    names = [layer_name(layer) for layer in distinct_layers(space(), 10, 3)[:3]]
    rows = [f"{name},{turn},1.5,1,onnxruntime,arm" for name in names for turn in range(2)]
    return "\n".join(["name,round,wall_p50,threads,runtime,machine", *rows, ""]).encode()


def _nats() -> bytes:
    result = {"epochs": 12, "eval_acc1es": {"x-valid@11": 90.0}}
    whole = {"meta_archs": ["a"], "arch2infos": {0: {"12": {"all_results": {("cifar10", 777): result}}}}}
    return pickle.dumps(whole, protocol=4)


def _read_nats(path: Path) -> object:
    # The fuzzer changes what is compressed: of other bytes bz2 alone refuses nearly all.
    archive = path.with_name("nats.pickle.pbz2")
    archive.write_bytes(bz2.compress(path.read_bytes()))
    return read_nats(archive, 12)


def _state() -> bytes:
    file = io.BytesIO()
    torch.save({"step": 1, "weights": {"a": torch.ones(2, 2)}}, file)
    return file.getvalue()


def _selected() -> bytes:
    return json.dumps({"arch": _arch(), "macs": 7, "val_accuracy": 0.5}).encode()


def _in_a_run(path: Path, read: Callable[[Path], object], place: str) -> object:
    """Read a run folder in which the file stands at `place`."""
    target = path.parent / "run" / place
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(path.read_bytes())
    return read(path.parent / "run")


def _manifest() -> bytes:
    tensor = {"name": "image", "dtype": "float32", "layout": "NCHW", "shape": ["batch", 3, 12, 12]}
    values = {"file": "a.onnx", "subnet": "a", "target": "cpu", "precision": "float32", "input": tensor}
    values |= {"output": tensor, "classes": ["a", "b"], "preprocessing": HOW, "architecture": {"kind": "ofa"}}
    values |= {"macs": 7, "params": 3, "accuracy": None, "parity": {}, "quantization": None}
    values |= {"milliseconds": 1.0, "opset": 18, "ir_version": 10, "bytes": 0, "sha256": "", "versions": {}}
    return json.dumps(values).encode()


def _read_manifest(path: Path) -> object:
    (path.parent / "a.onnx").write_bytes(b"")
    path.with_name("a.json").write_bytes(path.read_bytes())
    return read_manifest(path.parent / "a.onnx", check=False)


def _bundle() -> bytes:
    made = {"commands": ["a"], "data": {"name": "digits"}, "seed": 0, "config_sha256": "", "versions": {}}
    values = {"subnet": "a", "classes": ["a", "b"], "files": [json.loads(_manifest())], "selection": None}
    values |= {"provenance": made | {"git": None}, "benchmark": {}, "versions": {}}
    return json.dumps(values | {"sha256": {"a.onnx": ""}}).encode()


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "ignore")


def _read_text_genotype(path: Path) -> object:
    return find_genotype(_text(path))


def _read_model(path: Path) -> object:
    return validate(ImageModel, read_json(path), str(path))


def _summarise(run: Path) -> object:
    return summarise(run, run.parent)


def _space() -> bytes:
    return (Path(ofa.space.space.__file__).parent / "spaces" / "resnet34.yaml").read_bytes()


METRICS = b'{"step": 1, "val_accuracy": 0.5, "epoch": 0}\n'
CONFIG = b"epochs: 3\ndata: {name: digits, path: x}\nphases: [{epochs: 2}]\n"
ACCURACIES = b"arch,cifar10-test\n|none~0|+|none~0|none~1|+|none~0|none~1|none~2|,9.5\n"
MODEL = {"classes": ["a", "b"], "mean": [0.5], "std": [0.5], "preprocessing": {"image_size": 8}}
READERS = {
    "yaml": Reader("a.yaml", b"a: &a [1, 2.5, ~, 'x']\nb: {<<: {c: 1}, d: *a}\n", read_yaml),
    "json": Reader("a.json", b'{"a": [1, 2.5, null, "\\u00e4"], "b": {}}', read_json),
    "lines": Reader("a.jsonl", b'{"step": 1}\n{"step": 2, "arch": "x"}\n', read_lines),
    "space": Reader("a.yaml", b"", lambda path: load_space(str(path))),
    "targets": Reader("a.yaml", b"name: a\nformat: onnx\n", lambda path: find_targets(str(path))),
    "arch": Reader("a.json", b"", lambda path: find_arch(space(), str(path))),
    "arch as text": Reader("a", b"", lambda path: find_arch(space(), _text(path).replace("\0", ""))),
    "genotype": Reader("a.txt", DARTS.encode(), lambda path: find_genotype(str(path))),
    "genotype as text": Reader("a", DARTS.encode(), _read_text_genotype),
    "model": Reader("model.json", json.dumps(MODEL).encode(), _read_model),
    "pairs": Reader("pairs.jsonl", b"", lambda path: _in_a_run(path, read_pairs, "pairs.jsonl")),
    "selected": Reader("a.json", b"", lambda path: _in_a_run(path, read_selected, "selected/a.json")),
    "metrics": Reader("a", METRICS, lambda path: _in_a_run(path, _summarise, "metrics.jsonl")),
    "config": Reader("a", CONFIG, lambda path: _in_a_run(path, _summarise, "config.yaml")),
    "latency table": Reader("a.json", b"", _read_table),
    "timings": Reader("a.csv", b"", lambda path: build_table(read_timings(path), "phone", space(), 10, 3)),
    "accuracies": Reader("a.csv", ACCURACIES, AccuracyTable.read),
    "nats": Reader("a", b"", _read_nats),
    "npz": Reader("a.npz", b"", lambda path: Npz(name="npz", path=path).read()),
    "weights": Reader("a.safetensors", save({"a": torch.ones(2, 2)}), load_weights),
    "state": Reader("state.pt", b"", load_state),
    "checkpoint": Reader("a.pth", b"", read_checkpoint),
    "manifest": Reader("m.json", b"", _read_manifest),
    "bundle": Reader("b.json", b"", lambda path: _in_a_run(path, read_bundle, MANIFEST)),
    "jpeg": Reader("a", _image("JPEG"), _read_image),
    "png": Reader("a", _image("PNG"), _read_image),
    "webp": Reader("a", _image("WEBP", lossless=True), _read_image),
    "tiff": Reader("a", _image("TIFF"), _read_image),
}
# Made at first use, since they take a while.
SEEDS: dict[str, Callable[[], bytes]] = {
    "space": _space,
    "arch": _selected,
    "arch as text": _selected,
    "pairs": _pairs,
    "selected": _selected,
    "latency table": _table,
    "timings": _timings,
    "nats": _nats,
    "npz": _npz,
    "state": _state,
    "checkpoint": _state,
    "manifest": _manifest,
    "bundle": _bundle,
}


def seed_of(name: str) -> bytes:
    """Bytes that a reader takes."""
    return READERS[name].seed or SEEDS[name]()


def said_of(name: str, content: bytes, folder: Path) -> str:
    """What a reader says of a file with this content; empty if it takes it. Another error is a fault."""
    reader = READERS[name]
    path = folder / reader.name
    path.write_bytes(content)
    try:
        reader.read(path)
    except EXPECTED as error:
        return str(error)
    return ""
