"""Resize and crop in front of a network's graph: the file then takes decoded images of any size.

Written with ONNX operators and put in front of the finished graph, since torch's exporter has no antialiased
resize of whole numbers. onnxruntime resizes uint8 as Pillow does, with the same fixed-point weights, so that
the pixels are those of training but for a few that differ by one level.
"""

import numpy as np
import onnx
from onnx import helper, parser

from export.bake import CenterCrop
from export.bundle.classify import crop, resize
from export.formats.format import Array, Run

# The input of the whole file, and that of the network in it.
IMAGE, CROP = "image", "prepared_crop"
# Pillow's bicubic has the coefficient -0.5; torch's and OpenCV's has -0.75.
PREPARATION = """
prepare (uint8[1, height, width, {channels}] image) => (uint8[1, {side}, {side}, {channels}] prepared_crop) {{
  prepared_one = Constant <value_ints = [1]> ()
  prepared_side = Constant <value_ints = [{side}]> ()
  prepared_channels = Constant <value_ints = [{channels}]> ()
  {size}
  prepared_sizes = Concat <axis = 0> (prepared_one, prepared_size, prepared_channels)
  prepared_resized = Resize <mode = "{mode}", antialias = 1, cubic_coeff_a = -0.5, exclude_outside = 1,
    coordinate_transformation_mode = "half_pixel"> (image, , , prepared_sizes)
  {cut}
  prepared_shape = Constant <value_ints = [1, {side}, {side}, {channels}]> ()
  prepared_crop = Reshape (prepared_cut, prepared_shape)
}}
"""
# The shorter side as wanted; the longer one rounded down, as torchvision computes it.
SHORTER = """
  prepared_given = Shape <start = 1, end = 3> (image)
  prepared_least = ReduceMin <keepdims = 1> (prepared_given)
  prepared_wanted = Constant <value_ints = [{shorter}]> ()
  prepared_scaled = Mul (prepared_given, prepared_wanted)
  prepared_size = Div (prepared_scaled, prepared_least)
"""
# Half of what is too much is cut off at the left and at the top. Round takes halves to the even number, as
# Python does.
MIDDLE = """
  prepared_rest = Sub (prepared_size, prepared_side)
  prepared_exact = Cast <to = 1> (prepared_rest)
  prepared_half = Constant <value_float = 0.5> ()
  prepared_middle = Mul (prepared_exact, prepared_half)
  prepared_rounded = Round (prepared_middle)
  prepared_corner = Cast <to = 7> (prepared_rounded)
  prepared_end = Add (prepared_corner, prepared_side)
  prepared_axes = Constant <value_ints = [1, 2]> ()
  prepared_cut = Slice (prepared_resized, prepared_corner, prepared_end, prepared_axes)
"""
SQUARE = "prepared_size = Concat <axis = 0> (prepared_side, prepared_side)"
NOTHING_CUT = "prepared_cut = Identity (prepared_resized)"
# Pillow adds fixed-point products in another order at some pixels, which then round to the next level.
MOST_LEVELS = 1
SAME = 1e-4  # share of the largest output by which the network may differ behind its preparation
# Heights and widths, as shares of the crop's side: lying, upright, long, smaller than the crop, and as large.
TRIED = ((1.5, 2.0), (2.0, 1.5), (1.0, 4.0), (0.7, 0.6), (1.0, 1.0))


def put_in_front(model: onnx.ModelProto, how: CenterCrop, channels: int) -> None:
    """Make a graph of pixels (N, side, side, C) one of decoded images (1, height, width, C), in place."""
    graph, front = model.graph, _preparation(how, channels)
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name == IMAGE:
                node.input[i] = CROP
    body = list(graph.node)
    del graph.node[:]
    graph.node.extend([*front.node, *body])
    graph.input[0].CopyFrom(front.input[0])
    # Shapes that were inferred for a free number of images would contradict the one image.
    del graph.value_info[:]
    for output in graph.output:
        output.type.tensor_type.shape.dim[0].Clear()
        output.type.tensor_type.shape.dim[0].dim_value = 1


def crops_to_try(how: CenterCrop, channels: int, opset: int) -> list[Array]:
    """What the preparation alone makes of `images_to_try`, each (1, side, side, C).

    Args:
        how: the resize and the crop.
        channels: of the images.
        opset: of the file that it is for.
    """
    import onnxruntime as ort

    imports = [helper.make_opsetid("", opset)]
    model = helper.make_model(_preparation(how, channels), opset_imports=imports, ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [session.run(None, {IMAGE: pixels[None]})[0] for pixels in images_to_try(how.side, channels)]


def check_preparation(how: CenterCrop, channels: int, opset: int) -> str:
    """Compare the preparation alone with Pillow's; returns half a sentence on what is wrong, or nothing.

    Args:
        how, channels, opset: as `crops_to_try` takes them.
    """
    found = crops_to_try(how, channels, opset)
    for pixels, x in zip(images_to_try(how.side, channels), found, strict=True):
        facts = {"preprocessing": how.facts()}
        wanted = crop(resize(pixels, facts), facts).astype(int)
        levels = np.abs(x[0].astype(int) - wanted)
        if levels.max() > MOST_LEVELS:
            return (
                f"prepares an image of {pixels.shape[1]} x {pixels.shape[0]} pixels differently from Pillow, "
                f"by {levels.max()} levels"
            )
    return ""


def check_behind_preparation(run: Run, outputs: list[Array], how: CenterCrop, channels: int) -> str:
    """Compare a whole file with its network; returns half a sentence on what is wrong, or nothing.

    Args:
        run: the whole file.
        outputs: of the network for what the preparation makes of `images_to_try`, each (1, K).
        how: the resize and the crop.
        channels: of the images.
    """
    for pixels, wanted in zip(images_to_try(how.side, channels), outputs, strict=True):
        error = float(np.abs(run(pixels[None]) - wanted).max() / np.abs(wanted).max())
        if not error <= SAME:
            return f"differs by {error:.1e} from the network without preparation (limit {SAME:g})"
    return ""


def images_to_try(side: int, channels: int) -> list[Array]:
    """Decoded images (H, W, C) of many shapes, with noise that every mistake of a resize changes."""
    rng = np.random.default_rng(0)
    images = []
    for shares in TRIED:
        height, width = (max(2, round(share * side)) for share in shares)
        images.append(rng.integers(0, 256, (height, width, channels), dtype=np.uint8))
    return images


def _preparation(how: CenterCrop, channels: int) -> onnx.GraphProto:
    """The graph from IMAGE to CROP."""
    size, cut = SQUARE, NOTHING_CUT
    if how.shorter is not None:
        size, cut = SHORTER.format(shorter=how.shorter), MIDDLE
    mode = "cubic" if how.interpolation == "bicubic" else "linear"
    text = PREPARATION.format(channels=channels, side=how.side, size=size, cut=cut, mode=mode)
    graph: onnx.GraphProto = parser.parse_graph(text)
    for node in graph.node:
        node.name = f"node_{node.output[0]}"
    return graph
