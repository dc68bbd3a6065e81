"""DARTS-PT: Rethinking Architecture Selection in Differentiable NAS (2021, arXiv:2108.04392)."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from oneshot.methods.method import PUBLISHED, Method
from oneshot.methods.selection import PerturbationSelection


class DartsPt(Method):
    """First-order DARTS whose cell is read off by perturbation instead of by the largest alphas."""

    name: Literal["darts_pt"] = "darts_pt"
    selection: PerturbationSelection | None = PerturbationSelection()
    # On `darts` as in the paper's s5, which is that space without none.
    exclude_none: bool = True
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "nasbench201": {"exclude_none": False, "epochs": 100},
        "darts_s3": {"exclude_none": False},
        "recurrent": PUBLISHED["recurrent"] | {"exclude_none": False},
    }
