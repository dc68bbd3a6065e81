"""A search method is a record of choices, one on each axis; a file in `methods/` names those of one paper."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from engine.config import Config
from engine.seed import torch_generator
from oneshot.axes.derivation import Derivation, derive
from oneshot.axes.edge_weights import Mixture
from oneshot.axes.geometry import Adam, Exponentiated, Geometry
from oneshot.axes.penalty import BetaDecay, Entropy, PathDepth, Penalty
from oneshot.axes.relaxation import At, GumbelHard, HardConcrete, Relaxation, Simplex, Softmax
from oneshot.spaces.cells import CellSpace
from oneshot.spaces.genotype import Genotype

if TYPE_CHECKING:
    from oneshot.state import Searching


class Sgd(Config):
    """How the network's weights are trained: SGD with a cosine over the epochs."""

    lr: float = Field(0.025, gt=0, description="learning rate in the first epoch")
    lr_min: float = Field(0.001, ge=0, description="learning rate that the cosine ends at")
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(3e-4, ge=0, description="L2 on every weight")
    clip_norm: float | None = Field(
        5.0, gt=0, description="largest norm of the whole gradient; none: no clipping"
    )
    cosine_epochs: int | None = Field(None, ge=1, description="length of the cosine; none: the search's")
    restart: bool = Field(
        False,
        description="start the cosine again after its end, each time twice as long (SGDR, arXiv:1608.03983)",
    )


class AuxiliarySkip(Config):
    """DARTS- (2021, arXiv:2009.01027): a skip connection beside every mixture, whose weight falls to 0."""

    start: float = Field(1.0, ge=0, description="weight in the first epoch")
    decay: Literal["linear", "cosine"] = Field("linear", description="how the weight falls with the epochs")

    def weight(self, at: At) -> float:
        """Weight in an epoch."""
        share = (
            1 - at.passed
            if self.decay == "linear"
            else 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * at.passed))))
        )
        return self.start * share


@dataclass
class Alphas:
    """The parameters that a search learns beside weights: (E, O) for each kind of cell and, with edge
    weights, (E,) for each."""

    operations: dict[str, Tensor]
    edges: dict[str, Tensor]
    controller: nn.Module | None = None  # what draws architectures instead (ENAS)

    def all(self) -> list[Tensor]:
        """All of them, operations first."""
        return [
            *self.operations.values(),
            *self.edges.values(),
            *(self.controller.parameters() if self.controller else ()),
        ]


NEED_A_STEP = {"penalties", "edge_weights", "auxiliary_skip", "level", "order", "warmup_epochs"}

PUBLISHED: dict[str, dict[str, Any]] = {
    "nasbench201": {"weights_first": True, "sgd": {"nesterov": True, "weight_decay": 5e-4}},
    "recurrent": {
        "geometry": {"name": "adam", "lr": 3e-3, "betas": [0.9, 0.999], "weight_decay": 1e-3},
        "sgd": {
            "lr": 20.0,
            "lr_min": 20.0,
            "momentum": 0.0,
            "nesterov": False,
            "weight_decay": 5e-7,
            "clip_norm": 0.25,
        },
        "batch_size": 256,
        "epochs": 50,
    },
}


class Method(Config):
    """What a method chooses. Defaults are those of first-order DARTS (2019, arXiv:1806.09055) on CIFAR-10."""

    name: str
    relaxation: Relaxation = Field(Softmax(), description="from parameters to weights of operations")
    geometry: Geometry = Field(Adam(), description="how the parameters move along their gradient")
    penalties: tuple[Penalty, ...] = Field(
        (), description="what is added to the loss of the architecture step"
    )
    partial: int = Field(
        1, ge=1, description="K: 1 / K of the channels go through the operations (PC-DARTS); 1: all"
    )
    edge_weights: bool = Field(
        False, description="learn a weight for each edge into a node (PC-DARTS's edge normalisation)"
    )
    auxiliary_skip: AuxiliarySkip | None = Field(
        None, description="a fading skip connection beside each mixture (DARTS-)"
    )
    pool_norm: bool = Field(True, description="a BatchNorm after each pool, in the DARTS space")
    last_norm: bool = Field(
        False, description="a BatchNorm and a ReLU before the classifier, in the DARTS space"
    )
    derivation: Derivation = Field("edges", description="how the DARTS space's cells are read off")
    level: Literal["bilevel", "single"] = Field(
        "bilevel",
        description=(
            "bilevel: weights learn from one half of the images, the architecture from the other; single: "
            "both from all"
        ),
    )
    order: Literal["first", "second", "exact"] = Field(
        "first",
        description=(
            "architecture gradient at today's weights, one step ahead by finite differences, or exactly one "
            "step ahead"
        ),
    )
    weights_first: bool = Field(
        False, description="the weight step comes before the architecture step of the same pair of batches"
    )
    warmup_epochs: int = Field(0, ge=0, description="epochs in which the architecture is not trained")
    epochs: int = Field(50, ge=1, description="passes over the weights' half of the images")
    batch_size: int = Field(64, ge=2, description="images a step")
    sgd: Sgd = Sgd()

    learns: ClassVar[bool] = True  # whether each step has an architecture step, along gradients of alphas
    on: ClassVar[Mapping[str, Mapping[str, Any]]] = (
        PUBLISHED  # what was published for other spaces, where it differs from the defaults
    )

    @model_validator(mode="after")
    def _choices_fit(self) -> Self:
        simplex = isinstance(self.relaxation, Simplex)
        if simplex != isinstance(self.geometry, Exponentiated):
            raise ValueError(
                "relaxation simplex and geometry exponentiated need each other: only that step stays on the "
                "simplex"
            )
        kinds = {type(penalty) for penalty in self.penalties}
        if simplex and BetaDecay in kinds:
            raise ValueError(
                "beta_decay has no meaning on a simplex, which has no logits; take entropy, or a method with "
                "softmax"
            )
        if not simplex and Entropy in kinds:
            raise ValueError("entropy is written for relaxation simplex; take beta_decay, or method gaea")
        if PathDepth in kinds and not isinstance(self.relaxation, HardConcrete):
            raise ValueError("path_depth needs the gates of relaxation hard_concrete; take method pr_darts")
        if len(kinds) < len(self.penalties):
            raise ValueError(
                "a penalty is given twice, by the method and beside it, or by name; change its settings in "
                "method.penalties"
            )
        changed = {
            name for name in NEED_A_STEP if getattr(self, name) != type(self).model_fields[name].get_default()
        }
        if not self.learns and changed:
            raise ValueError(
                f"method.{min(changed)} is for an architecture step along a gradient, which {self.name} has "
                "not; leave it out"
            )
        if self.order != "first" and self.level == "single":
            raise ValueError(
                f"order {self.order} looks ahead to the weights' next step on other images; it needs level "
                "bilevel"
            )
        if self.order != "first" and isinstance(self.relaxation, GumbelHard | HardConcrete):
            raise ValueError(
                f"order {self.order} is for methods that run all operations; {self.relaxation.name} samples: "
                "take order first"
            )
        return self

    @property
    def samples(self) -> bool:
        """Whether the network runs some of its operations only; its BatchNorms then always take the batch's
        statistics."""
        return self.relaxation.samples or not self.learns

    def start(self, space: CellSpace, seed: int, device: torch.device) -> Alphas:
        """Parameters before the first step."""
        operations = {
            kind: self.relaxation.start(space.may(kind), torch_generator("cpu", seed, "alphas", kind))
            for kind in space.cells
        }
        edges = {}
        if self.edge_weights:
            entering = torch.cat(
                [
                    torch.full((into.stop - into.start,), 1.0 / (into.stop - into.start))
                    for into in space.entering
                ]
            )
            for kind in space.cells:
                noise = 1e-3 * torch.randn(
                    len(space.edges), generator=torch_generator("cpu", seed, "betas", kind)
                )
                edges[kind] = entering.clone() if isinstance(self.relaxation, Simplex) else noise
        for values in (operations, edges):
            values.update({kind: value.to(device).requires_grad_() for kind, value in values.items()})
        return Alphas(operations, edges)

    def mixtures(self, space: CellSpace, alphas: Alphas, at: At, draw: torch.Generator) -> dict[str, Mixture]:
        """What the network gets in one forward pass. draw: on CPU; the same state draws the same."""
        found = {}
        for kind, alpha_EO in alphas.operations.items():
            mixture = self.relaxation.mix(alpha_EO, space.may(kind, alpha_EO.device), at, draw)
            skip = alpha_EO.new_full((), self.auxiliary_skip.weight(at)) if self.auxiliary_skip else None
            found[kind] = mixture._replace(edge_E=self._edge_weights(space, alphas, kind), skip=skip)
        return found

    def probabilities(self, space: CellSpace, alphas: Alphas) -> dict[str, Tensor]:
        """(E, O) for each kind of cell, times the weight of the edge where there is one; what derivation
        reads.

        Uniform for a method that has no table of parameters.
        """
        if not self.learns:
            return {kind: space.may(kind) / space.may(kind).sum(-1, keepdim=True) for kind in space.cells}
        found = {}
        for kind, alpha_EO in alphas.operations.items():
            edge_E = self._edge_weights(space, alphas, kind)
            weights = self.relaxation.probabilities(alpha_EO, space.may(kind, alpha_EO.device))
            found[kind] = (weights if edge_E is None else weights * edge_E[:, None]).detach().cpu()
        return found

    def _edge_weights(self, space: CellSpace, alphas: Alphas, kind: str) -> Tensor | None:
        if kind not in alphas.edges:
            return None
        return torch.cat([self.relaxation.over_edges(alphas.edges[kind][into]) for into in space.entering])

    def optimizer(self, space: CellSpace, alphas: Alphas) -> torch.optim.Optimizer:
        """What moves the parameters."""
        rows: list[tuple[slice, ...]] = [(slice(None),)] * len(alphas.operations) + [space.entering] * len(
            alphas.edges
        )
        return self.geometry.build(alphas.all(), rows)

    def after_epoch(self, searching: "Searching") -> None:
        """What a method does between two epochs; most do nothing."""

    def genotype(self, searching: "Searching") -> Genotype:
        """The current choice."""
        return derive(searching.space, self.probabilities(searching.space, searching.alphas), self.derivation)

    def final_genotype(self, searching: "Searching") -> Genotype:
        """The choice at the end; a method that compares candidates does so here."""
        return self.genotype(searching)

    def refuse(self, space: CellSpace) -> str | None:
        """A sentence about why this method cannot search this space, or nothing."""
        recurrent = space.name == "recurrent"

        def fewest(kind: str) -> int:
            return int(space.may(kind).sum(-1).min())

        needs = [
            (recurrent and self.partial > 1, "partial channels need channels"),
            (
                recurrent and self.level == "single",
                "weights and architecture learn from two texts; take --method.level bilevel",
            ),
            (recurrent and self.auxiliary_skip is not None, "an auxiliary skip is written for images"),
            (
                len(space.cells) < 2 and any(isinstance(p, PathDepth) for p in self.penalties),
                "path_depth weighs normal and reduction cells; leave it out with --method.penalties ''",
            ),
            (
                isinstance(self.relaxation, HardConcrete)
                and self.relaxation.keep > min(map(fewest, space.cells)),
                "method.relaxation.keep is more than the operations of an edge",
            ),
        ]
        return next(
            (f"Method {self.name} cannot search space {space.name}: {why}." for fails, why in needs if fails),
            None,
        )
