"""GAEA: Geometry-Aware Gradient Algorithms for Neural Architecture Search (2021, arXiv:2004.07802)."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from oneshot.axes.geometry import Exponentiated, Geometry
from oneshot.axes.relaxation import Relaxation, Simplex
from oneshot.axes.weight_sgd import WeightSgd
from oneshot.methods.method import PUBLISHED, Method
from oneshot.methods.pc_darts import PcDarts

# On text the published geometry is Adam's, which does not stay on the simplex.
ON_TEXT = {name: value for name, value in PUBLISHED["recurrent"].items() if name != "geometry"}


class Gaea(Method):
    """GAEA-DARTS: probabilities on the simplex, moved by exponentiated gradient.

    On NAS-Bench-201 the settings are those of its released code: both levels learn from all images (ERM), in
    turn, for 25 epochs of a 50-epoch cosine, and `none` does not compete. `--method.level single` moves both
    in one step on one batch instead.
    """

    name: Literal["gaea"] = "gaea"
    relaxation: Relaxation = Simplex()
    geometry: Geometry = Exponentiated()
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "nasbench201": {
            "level": "released",
            "exclude_none": True,
            "channels": 24,
            "epochs": 25,
            "sgd": {"cosine_epochs": 50},
        },
        "recurrent": ON_TEXT,
    }


class GaeaPcDarts(PcDarts):
    """PC-DARTS whose operations and edges both live on simplices; no warm-up."""

    name: Literal["gaea_pc_darts"] = "gaea_pc_darts"  # type: ignore[assignment]
    relaxation: Relaxation = Simplex()
    geometry: Geometry = Exponentiated()
    # No warm-up, unlike PC-DARTS.
    warmup_epochs: int = 0
    sgd: WeightSgd = WeightSgd(lr=0.1, lr_min=0.0)
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {"recurrent": ON_TEXT}
