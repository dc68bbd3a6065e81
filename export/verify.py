"""Proof that an exported file computes what the torch model computes."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import Tensor, nn

TOLERANCE = 1e-4


class Parity(NamedTuple):
    """Largest difference of logits relative to the largest logit, share of equal top-1, and how many images were tried."""

    relative_error: float
    same_top1: float
    images: int

    @property
    def passed(self) -> bool:
        """Within tolerance, and the same decision on every image. NaN fails."""
        return self.relative_error <= TOLERANCE and self.same_top1 == 1.0


@torch.no_grad()
def compare(module: nn.Module, path: Path, x_NCHW: Tensor) -> Parity:
    """onnxruntime on `path` against `module` in eval mode, on CPU in float32: one image alone, then all in one batch."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    module.eval()
    error, same = 0.0, []
    for batch in (x_NCHW[:1], x_NCHW):
        wanted = module(batch).numpy()
        (got,) = session.run(["logits"], {"image": batch.contiguous().numpy()})
        difference = float(np.abs(got - wanted).max() / np.abs(wanted).max())
        error = difference if difference > error or np.isnan(difference) else error
        same.append(float((got.argmax(1) == wanted.argmax(1)).mean()))
    return Parity(error, min(same), len(x_NCHW))


def check_file(path: Path, parameters: int) -> str:
    """A sentence about what is wrong with the file itself, or nothing.

    It must be valid ONNX, hold no training-time BatchNorm, no path of this machine, and no more than the subnet's own weights.
    """
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    stored = sum(int(np.prod(t.dims)) for t in model.graph.initializer)
    if stored > parameters * 1.05 + 1000:
        return f"{path.name} stores {stored} numbers, but the subnet has only {parameters} parameters."
    if any(node.op_type == "BatchNormalization" for node in model.graph.node):
        return f"{path.name} still has BatchNormalization nodes; they should be folded."
    del model.graph.initializer[:]
    if re.search(rb'\.py\b|File "', model.SerializeToString()):
        return f"{path.name} names source files of this machine."
    return ""
