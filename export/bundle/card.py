"""The model card of a bundle: a function of its manifest, against which every sentence can be checked."""

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.config import counted, format_count
from engine.model import forbids_commerce
from engine.statistics import wilson_interval
from export.bundle.contents import EXAMPLE, LABELS, MANIFEST, Bundle
from export.bundle.hub import card_head
from export.formats import format_of
from export.manifest import Manifest, Tensor

MOST_CLASSES = 50  # more fill the page; labels.txt has them all


def render_card(bundle: Bundle) -> str:
    """The card, in Markdown."""
    targets = list(dict.fromkeys(_code(file.target) for file in bundle.files))
    count = len(bundle.classes)
    sections = {
        "Intended input": _input(bundle),
        "Classes": _classes(bundle),
        "Files": _files(bundle),
        "Accuracy": _accuracy(bundle),
        "Cost": _cost(bundle),
        "Provenance": _provenance(bundle),
        "Limits": _limits(bundle),
    }
    lines = [
        card_head(bundle) + f"# {_plain(bundle.subnet)}",
        "",
        f"A network that says which of {count} classes an image shows, for {_list(targets)}.",
        f"Every number on this page is in {_code(MANIFEST)}, or computed from numbers there.",
        "",
        _example(bundle),
    ]
    for title, body in sections.items():
        lines += ["", f"## {title}", "", *body]
    return "\n".join(lines) + "\n"


def _example(bundle: Bundle) -> str:
    """How to try the network at once."""
    # The files are in order of plainness, so the first that the example runs is the one that it takes.
    for file in bundle.files:
        if format_of(Path(file.file)).in_example:
            return (
                f"    python {EXAMPLE} IMAGE            needs onnxruntime, numpy and pillow; classifies with "
                f"{_code(file.file)}\n"
                f"    python {EXAMPLE} --check          proves this copy: the same numbers from the samples"
            )
    runtimes = list(dict.fromkeys(format_of(Path(file.file)).runtime for file in bundle.files))
    return (
        f"The files run in {_list(runtimes)}. {_code(EXAMPLE)} shows how to prepare an image, and runs none "
        "of them."
    )


# What Markdown or HTML would read as something else than text: marks, links, tags, cells and code.
MARKS = re.compile(r"([\\`*_\[\]|~#!])")


def _plain(text: object) -> str:
    """Text that shows as it is: it ends no line and no cell, and is neither markup nor a tag nor a link."""
    # Names come from files of anybody, and what shows a card in a browser may keep HTML that stands in it.
    one_line = html.escape(" ".join(str(text).split()), quote=False)
    return MARKS.sub(r"\\\1", one_line)


def _code(text: str) -> str:
    """Text as code, in which nothing but its own end is read as markup."""
    # A bar would end the cell of a table, also inside of code.
    return "`" + " ".join(str(text).split()).replace("`", "'").replace("|", "\\|") + "`"


def _list(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def _input(bundle: Bundle) -> Iterator[str]:
    """How to prepare an image, with one paragraph for all files that take the same input."""
    alike: dict[str, list[Manifest]] = {}
    for file in bundle.files:
        key = json.dumps([file.preprocessing, file.input.model_dump()])
        alike.setdefault(key, []).append(file)
    for files in alike.values():
        first, names = files[0], _list([_code(file.file) for file in files])
        how = first.preprocessing or {}
        colour = "RGB" if how["channels"] == "RGB" else "gray"
        yield f"For {names}: one {colour} image of a class below."
        yield ""
        yield from (f"{i}. {step}" for i, step in enumerate(_steps(how, first), start=1))
        yield ""
        meaning = "numbers of which softmax makes probabilities"
        if first.output.name == "probabilities":
            meaning = "probabilities"
        yield f"The output is {_tensor(first.output)}: {meaning}."
        yield ""
    yield f"{_code(EXAMPLE)} does exactly this."


def _steps(how: dict[str, Any], file: Manifest) -> Iterator[str]:
    """What to do with an image file, one step a sentence, until it is the input."""
    if how.get("baked") == "preprocessing":
        yield "Decode it to 8 bits a channel, turned as its EXIF orientation says."
        yield f"Give it, whatever its size, as {_tensor(file.input)}; the graph does the rest."
        return
    side, size = how.get("center_crop") or how["image_size"], how["resize"][0]
    if "center_crop" in how:
        interpolation = _plain(how["resize_interpolation"])
        yield f"Resize the shorter side to {how['resize_shorter_side']} pixels ({interpolation})."
        yield f"Cut out the middle, {side} x {side} pixels."
    else:
        yield f"Resize an image of another size to {side} x {side} pixels (bicubic, antialiased)."
    # The network's side may be another than that of its data: subnets of a supernet differ in resolution.
    if side != size:
        yield f"Resize to {size} x {size} pixels ({_plain(how['interpolation'])})."
    if file.input.dtype == "uint8":
        yield "Round to whole numbers from 0 to 255; the graph does the rest."
    else:
        mean, std = (", ".join(f"{value:.6g}" for value in how[key]) for key in ("mean", "std"))
        yield f"Divide by 255, subtract the mean ({mean}), divide by the deviation ({std})."
    yield f"Give it as {_tensor(file.input)}."


def _tensor(tensor: Tensor) -> str:
    shape = " x ".join(map(str, tensor.shape))
    return f"{_code(tensor.name)}, {_plain(tensor.dtype)}, {_plain(tensor.layout)}, {_plain(shape)}"


def _classes(bundle: Bundle) -> Iterator[str]:
    shown = ", ".join(_plain(name) for name in bundle.classes[:MOST_CLASSES])
    rest = len(bundle.classes) - MOST_CLASSES
    more = f", and {rest} more" if rest > 0 else ""
    where = f"in the order of the outputs, one a line in {_code(LABELS)}"
    yield f"{len(bundle.classes)}, {where}: {shown}{more}."


def _files(bundle: Bundle) -> Iterator[str]:
    yield "| file | target | precision | bytes | SHA-256 |"
    yield "|---|---|---|---|---|"
    for file in bundle.files:
        made_for = f"{_plain(file.target)} | {_plain(file.precision)}"
        yield f"| {_code(file.file)} | {made_for} | {file.bytes} | {_code(file.sha256)} |"
    for file in bundle.files:
        if file.compiled is not None:
            yield ""
            yield (
                f"{_code(file.file)} is compiled: {_plain(str(file.compiled))}. Its accuracy is that of an "
                "emulator of the NPU."
            )


def _accuracy(bundle: Bundle) -> Iterator[str]:
    for file in bundle.files:
        if file.not_run is not None:
            yield (
                f"- {_code(file.file)} was not run where it was written ({_plain(file.not_run)}). Only its "
                "shapes, precision and weights were compared with the network; its accuracy is not known."
            )
            continue
        if file.accuracy is None or file.parity is None:
            yield f"- {_code(file.file)}: not known."
            continue
        said, (low, high) = file.accuracy, wilson_interval(file.accuracy.file, file.accuracy.images)
        yield (
            f"- {_code(file.file)} is right on {_percent(said.file)} of {said.images} images of the split "
            f"{_code(said.split)}; the torch model that it was made from on {_percent(said.torch)}. Both "
            f"give the same class for {_percent(file.parity['same_top1'])} of them. On other images of the "
            f"same kind, {_percent(low)} to {_percent(high)} are to be expected (90% interval of Wilson)."
        )
    # The best of many subnets on these images is partly the luckiest one.
    if bundle.selection is not None:
        predicted, expected = bundle.selection.predicted_accuracy, bundle.selection.expected_accuracy
        before = " before tuning" if "tuned" in bundle.files[0].architecture else ""
        more = ""
        if predicted is not None:
            more += f" The predictor predicted {_percent(predicted)}{before}."
        if expected is not None:
            more += (
                f" The expected accuracy on other images of the same kind was {_percent(expected)}{before}."
            )
        yield (
            "- Accuracy on the split `val` decided that this network was chosen, which flatters it a little."
            f"{more}"
        )


def _cost(bundle: Bundle) -> Iterator[str]:
    first = bundle.files[0]  # all files are of one network, so their MACs and parameters are the same
    yield (
        f"- One image takes {format_count(first.macs)} multiply-accumulates; the network has "
        f"{format_count(first.params)} parameters."
    )
    for name, timing in bundle.benchmark.items():
        yield (
            f"- {_code(name)} takes {timing.wall_p50:.3g} ms for an image, and 90% of the runs take no more "
            f"than {timing.wall_p90:.3g} ms, with {counted(timing.threads, 'thread')} of "
            f"{_plain(timing.runtime)} on {_plain(timing.machine)}; two halves of the rounds differ by "
            f"{_percent(timing.noise)}."
        )
    if not bundle.benchmark:
        yield "- These files were not benchmarked before they were bundled, so no speed is promised."


def _provenance(bundle: Bundle) -> Iterator[str]:
    made, selection = bundle.provenance, bundle.selection
    place = f" in a folder called {_code(made.data['path'])}" if made.data.get("path") else ""
    yield (
        f"- Trained on the images of {_code(made.data['name'])}{place}, with seed {made.seed}; config.yaml "
        f"has SHA-256 {_code(made.config_sha256)}, that of its weights {_code(made.weights_sha256)}."
    )
    yield _weights(bundle)
    if selection is not None and selection.constraints:
        limits = []
        for limit in selection.constraints:
            limits.append(f"{limit.name} of at most {format_count(limit.limit)}{limit.unit}")
        how = f", with a predictor that learned from {selection.pairs} subnets" if selection.pairs else ""
        yield f"- Chosen for {_list(limits)}{how}."
    tuned = bundle.files[0].architecture.get("tuned")
    if tuned is not None:
        epochs = "1 epoch" if tuned["epochs"] == 1 else f"{_plain(tuned['epochs'])} epochs"
        rounded = f", rounded to {_plain(tuned['qat'])} in the second half" if tuned.get("qat") else ""
        teacher = _plain(tuned["teacher"])
        yield f"- Tuned for {epochs} after the supernet's training{rounded}; teacher: {teacher}."
    if made.git is not None and made.git.commit:
        state = ", with uncommitted changes" if made.git.dirty else ""
        yield f"- Source at commit {_code(made.git.commit)}{state}."
    yield f"- Trained with {_versions(made.versions)}."
    yield f"- Bundled with {_versions(bundle.versions)}."
    yield "- Commands:"
    yield ""
    yield from (f"      {' '.join(command.split())}" for command in made.commands)


def _weights(bundle: Bundle) -> str:
    """Whose weights the training started from, and what they may be used for."""
    origin = bundle.files[0].weights
    if origin is None:
        return "- The weights are the user's own: the training started from scratch."
    licence = origin["licence"]
    if licence == "unknown":
        licence = "unknown: ask the source"
    page = f" ({_plain(origin['url'])})" if origin["url"] else ""
    file = f" The file that was converted has SHA-256 {_code(origin['sha256'])}." if origin["sha256"] else ""
    # The licence of weights holds for what is trained from them, tuned and quantised copies included.
    terms = " It forbids commercial use, of this network too." if forbids_commerce(licence) else ""
    return (
        f"- The training started from the weights {_code(origin['name'])} of {_plain(origin['source'])}"
        f"{page}. Their licence: {_plain(licence)}.{terms}{file}"
    )


def _versions(versions: dict[str, str]) -> str:
    return _list([_plain(f"{name} {version}") for name, version in versions.items()])


def _limits(bundle: Bundle) -> Iterator[str]:
    how = bundle.files[0].preprocessing or {}
    splits = {file.accuracy.split for file in bundle.files if file.accuracy is not None}
    yield f"- It answers with one of its {len(bundle.classes)} classes whatever the image shows."
    yield f"- Nothing is known about images from elsewhere than {_code(bundle.provenance.data['name'])}."
    # Only where it is true of all files.
    if splits == {"val"}:
        yield "- No test images were looked at for the accuracies above."
    if "center_crop" in how:
        yield "- What lies outside of the middle square of an image is not seen."
    for file in bundle.files:
        if file.quantization is not None:
            kept, layers = len(file.quantization["float_layers"]), file.quantization["layers"]
            bits = "8 bits"
            if file.precision == "a16w8":
                bits = "16 bits, with weights of 8,"
            yield (
                f"- {_code(file.file)} computes in {bits} whose ranges come from "
                f"{_plain(file.quantization['calibration_images'])} images; {kept} of {_plain(layers)} "
                "layers stayed in float32."
            )
