"""An 8-bit product whose sums are larger than 16 bits hold, which x86 CPUs without VNNI clip."""

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

SCALE = 10_000  # of the logits


def write_large_sums(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Write the file; returns inputs (5, 64) and the logits (5, 16) that exact sums give."""
    rng = np.random.default_rng(0)
    # 255 x 127, twice, is more than 16 bits hold.
    x = rng.integers(200, 256, (5, 64), dtype=np.uint8)
    weight = rng.integers(100, 128, (64, 16), dtype=np.int8)
    scalars = {"one": np.float32(1), "sums": np.float32(SCALE), "u8": np.uint8(0), "s8": np.int8(0)}
    constants = [numpy_helper.from_array(weight, "weight")]
    constants += [numpy_helper.from_array(np.array(value), name) for name, value in scalars.items()]
    nodes = [
        helper.make_node("QuantizeLinear", ["image", "one", "u8"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "one", "u8"], ["x"]),
        helper.make_node("DequantizeLinear", ["weight", "one", "s8"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("QuantizeLinear", ["product", "sums", "u8"], ["rounded"]),
        helper.make_node("DequantizeLinear", ["rounded", "sums", "u8"], ["logits"]),
    ]
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width])]
        for name, width in (("image", 64), ("logits", 16))
    ]
    graph = helper.make_graph(nodes, "sums", *ends, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path)
    sums = x.astype(np.int64) @ weight.astype(np.int64)
    assert sums.min() > 2**20, "else nothing would be clipped"
    return x.astype(np.float32), np.rint(sums / SCALE).clip(0, 255) * SCALE
