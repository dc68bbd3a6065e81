"""torch.compile for the parts of a network whose shapes are the same in every step.

A part, such as a cell, is compiled once for each size and each way in which it is used, and not once for each
time that it occurs. That is why parts are compiled and not whole networks, which would take as many times as
long. Compiled parts are a few kernels instead of hundreds; results are those of eager layers up to rounding.

Not run on a GPU so far. The tests compile for CPU, where they also check that torch finds no place at which
it would have to leave a part and come back.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

# Versions of one part: torch gives up after 8. A search network has parts of some ten sizes and uses each in
# up to four ways: for the gradient of weights, of alphas, of both, and at weights other than its own.
VERSIONS = 128
ABOUT_COMPILE = (
    "compile the network's parts for its shapes, which takes minutes at the start and in each first step of "
    "another kind; needs a C++ compiler on CPU, Triton on CUDA"
)


def compile_parts(parts: Iterable[nn.Module], strict: bool = False, backend: str = "inductor") -> None:
    """Let each part run compiled from now on, in place. Nothing is compiled before the part runs.

    Args:
        parts: modules that are called by themselves, with tensors of the same shapes in every step.
        strict: refuse a part that torch cannot compile as a whole; else it is compiled in pieces.
        backend: torch's name of what compiles.
    """
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, VERSIONS)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 8 * VERSIONS)
    for part in parts:
        # Shapes are constants: kernels for any shape would be slower.
        part.compile(backend=backend, fullgraph=strict, dynamic=False)


def eagerly() -> AbstractContextManager[Any]:
    """A context in which compiled parts run as they were written.

    For what comes in other shapes, such as evaluation, and for gradients of gradients, which compiled parts
    do not have.
    """
    return torch.compiler.set_stance("force_eager")
