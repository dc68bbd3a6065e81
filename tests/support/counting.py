"""How many operations a call runs; on a GPU each of them would be a kernel or more."""

from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

VIEWS = {"detach", "alias", "view", "slice", "split", "split_with_sizes", "expand", "unsqueeze", "as_strided"}


class _Count(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func._schema.name.removeprefix("aten::") not in VIEWS
        return func(*args, **(kwargs or {}))


def count_operations(call: Callable[[], object]) -> int:
    """How many operations `call` runs, views left out."""
    with _Count() as counted:
        call()
    return counted.count
