"""A search method is a record of choices, one on each axis; a file in `methods/` names those of one paper."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from engine.seed import torch_generator
from oneshot.axes.alphas import Alphas
from oneshot.axes.auxiliary_skip import AuxiliarySkip
from oneshot.axes.derivation import Derivation, derive_genotype
from oneshot.axes.edge_weights import EdgeWeights, read_active
from oneshot.axes.geometry import Adam, Exponentiated, Geometry, Rows
from oneshot.axes.penalty import Anchor, BetaDecay, CostPenalty, Entropy, PathDepth, Penalty, ZeroOne
from oneshot.axes.progress import Progress
from oneshot.axes.relaxation import Dirichlet, HardConcrete, Relaxation, Sigmoid, Simplex, Softmax
from oneshot.axes.weight_sgd import WeightSgd
from oneshot.chains.space import CHAIN
from oneshot.methods.hooks import Hooks
from oneshot.methods.selection import PerturbationSelection
from oneshot.spaces.cells import CellSpace
from oneshot.spaces.genotype import AnyGenotype
from oneshot.spaces.search_space import SearchSpace
from oneshot.state import SearchState

# Settings that only a method with an architecture step along a gradient can have.
NEED_A_STEP = {
    *("penalties", "edge_weights", "auxiliary_skip", "level", "order", "warmup_epochs", "selection"),
}
NEED_A_STEP |= {"architecture_every"}

# Settings that were published for other spaces than `darts`, where they differ from the defaults. Those of
# `nasbench201` are AutoDL-Projects', the code of that benchmark, which ran darts, gdas, random_ws and enas.
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


class Method(Hooks):
    """What a method chooses: one choice on each axis, and its settings.

    Defaults are those of first-order DARTS (2019, arXiv:1806.09055) on CIFAR-10. A file in `methods/` sets
    what another paper chooses. A method may also override what a search calls: `weigh_edges` in each step,
    `genotype`, `final_genotype` at the end, and what `Hooks` has.
    """

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
        None, description="a fading skip connection beside each edge's operations (DARTS-)"
    )
    pool_norm: bool = Field(True, description="a BatchNorm after each pool, in the DARTS space")
    last_norm: bool = Field(
        False, description="a BatchNorm and a ReLU before the classifier, in the DARTS space"
    )
    derivation: Derivation = Field("edges", description="how the DARTS space's cells are read off")
    selection: PerturbationSelection | None = Field(
        None, description="decide edge by edge after the search (DARTS-PT); none: by the largest weights"
    )
    exclude_none: bool = Field(False, description="the operation none does not compete")
    level: Literal["bilevel", "single", "released"] = Field(
        "bilevel",
        description=(
            "bilevel: weights learn from one half of the images, the architecture from the other; single: "
            "both from all, in one step on one batch; released: both from all, in turn and each on a batch "
            "of its own, as GAEA's released code"
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
    architecture_every: int = Field(
        1, ge=1, description="steps of the weights for one step of the architecture (ProxylessNAS: 5)"
    )
    epochs: int = Field(50, ge=1, description="passes over the weights' half of the images")
    batch_size: int = Field(64, ge=2, description="images a step")
    channels: int = Field(16, ge=2, description="width of the first cells of the search network")
    cells: int | None = Field(None, ge=1, description="of the search network; none: as usual in the space")
    sgd: WeightSgd = WeightSgd()

    has_architecture_step: ClassVar[bool] = True  # along gradients of alphas, in each step
    can_aim: ClassVar[bool] = False  # at a target without such a step
    chains: ClassVar[str | None] = None  # the space of chains that it was published on; None: it is for cells
    # Settings for other spaces. Those of NAS-Bench-201 are for the methods that its authors ran.
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {"recurrent": PUBLISHED["recurrent"]}

    @model_validator(mode="after")
    def _parameters_fit(self) -> Self:
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
        if ZeroOne in kinds and not isinstance(self.relaxation, Sigmoid):
            raise ValueError("zero_one drives sigmoids apart; take relaxation sigmoid, or method fair_darts")
        if Anchor in kinds and not isinstance(self.relaxation, Dirichlet):
            raise ValueError(
                "anchor is of Dirichlet distributions; take relaxation dirichlet, or method drnas"
            )
        if len(kinds) < len(self.penalties):
            raise ValueError(
                "a penalty is given twice, by the method and beside it, or by name; change its settings in "
                "method.penalties"
            )
        return self

    @model_validator(mode="after")
    def _steps_fit(self) -> Self:
        # Such a setting would have no effect, and a user would not notice.
        if not self.has_architecture_step:
            for name in sorted(NEED_A_STEP):
                if getattr(self, name) != type(self).model_fields[name].get_default():
                    raise ValueError(
                        f"method.{name} is for an architecture step along a gradient, which {self.name} has "
                        "not; leave it out"
                    )
        if self.order != "first" and self.level != "bilevel":
            raise ValueError(
                f"order {self.order} looks ahead to the weights' next step on other images; it needs level "
                "bilevel"
            )
        if self.selection is not None and self.relaxation.samples_operations:
            raise ValueError(
                f"selection asks how the network is without an operation; {self.relaxation.name} runs one or "
                "two of an edge: take a relaxation that runs all, or leave selection out"
            )
        if self.order != "first" and self.relaxation.samples_operations:
            raise ValueError(
                f"order {self.order} is for methods that run all operations; {self.relaxation.name} samples: "
                "take order first"
            )
        return self

    @property
    def samples_operations(self) -> bool:
        """Whether the network runs some of its operations only.

        Its BatchNorms then always take the batch's statistics.
        """
        return self.relaxation.samples_operations or not self.has_architecture_step

    @property
    def has_eigenvalue(self) -> bool:
        """Whether the loss has a second derivative in the architecture, so that a search can be watched."""
        return self.relaxation.smooth and not self.samples_operations

    def offered(self, space: SearchSpace) -> SearchSpace:
        """The space as this method searches it."""
        return space.without("none") if self.exclude_none and isinstance(space, CellSpace) else space

    @property
    def channel_parts(self) -> tuple[int, ...]:
        """Into how many parts the channels of the search network must be divisible."""
        return (self.partial,)

    def learning_rate(self, progress: Progress) -> float:
        """Learning rate of the weights in an epoch."""
        # As DARTS-PT: a tenth, without a schedule.
        return self.sgd.lr / 10 if progress.tuning else self.sgd.learning_rate(progress)

    def total_epochs(self, space: SearchSpace, epochs: int) -> int:
        """Epochs of a search of `epochs` epochs and of what follows it."""
        return epochs + (0 if self.selection is None else self.selection.tuning(space))

    def before_epoch(self, state: SearchState) -> None:
        """After the search, the decisions whose time has come."""
        if self.selection is None or not state.progress.tuning:
            return
        if not state.alphas.decided:
            state.restart_weights()
        self._decide(state, self.selection.wanted(state.progress.tuning))

    def _decide(self, state: SearchState, wanted: int) -> None:
        """Decide edges until there are `wanted` decisions for each kind of cell."""

        def edge_weights() -> dict[str, EdgeWeights]:
            draws = torch_generator("cpu", state.seed, "selection")
            found = self.weigh_edges(state.space, state.alphas, state.progress, draws)
            for kind, alpha_EO in state.alphas.operations.items():
                # Expected weights instead of a draw.
                allowed_EO = state.space.allowed_mask(kind, alpha_EO.device)
                expected_EO = self.relaxation.probabilities(alpha_EO, allowed_EO)
                weight_EO = state.alphas.with_decisions(kind, expected_EO)
                found[kind] = found[kind]._replace(weight_EO=weight_EO)
            return found

        assert self.selection is not None
        with torch.no_grad():
            self.selection.decide(state, edge_weights, wanted)

    def waits(self, progress: Progress) -> bool:
        """Whether the architecture is not trained in this epoch, a warm-up of the weights."""
        return progress.epoch < self.warmup_epochs

    def shortest_stage(self, epochs: int) -> int:
        """Epochs of the shortest stage, each of which begins with the warm-up; a search is one stage."""
        return epochs

    def start(self, space: SearchSpace, seed: int, device: torch.device) -> Alphas:
        """Parameters before the first step."""
        alphas = Alphas({}, {})
        for kind in space.cells:
            generator = torch_generator("cpu", seed, "alphas", kind)
            alpha_EO = self.relaxation.start(space.allowed_mask(kind), generator)
            alphas.operations[kind] = alpha_EO.to(device).requires_grad_()
            if self.edge_weights:
                beta_E = self._start_of_edges(space, torch_generator("cpu", seed, "betas", kind))
                alphas.edges[kind] = beta_E.to(device).requires_grad_()
        return alphas

    def _start_of_edges(self, space: SearchSpace, generator: torch.Generator) -> Tensor:
        """(E,) parameters of edges: uniform over the edges into a node, as logits with a little noise."""
        if not isinstance(self.relaxation, Simplex):
            return 1e-3 * torch.randn(len(space.edges), generator=generator)
        counts = [into.stop - into.start for into in space.entering]
        return torch.cat([torch.full((count,), 1.0 / count) for count in counts])

    def weigh_edges(
        self, space: SearchSpace, alphas: Alphas, progress: Progress, draws: torch.Generator
    ) -> dict[str, EdgeWeights]:
        """What the network gets in one forward pass, for each kind of cell.

        Args:
            space: what is searched.
            alphas: the parameters now.
            progress: where the search is.
            draws: a generator on CPU; the same state draws the same.
        """
        edge_weights = {}
        for kind, alpha_EO in alphas.operations.items():
            allowed_EO = space.allowed_mask(kind, alpha_EO.device)
            cell_weights = self.relaxation.mix(alpha_EO, allowed_EO, progress, draws)
            skip = None
            # A number on the device: multiplying by it copies nothing from the host in the cells.
            if self.auxiliary_skip is not None:
                skip = alpha_EO.new_full((), self.auxiliary_skip.weight(progress))
            edge_E = self._weights_of_edges(space, alphas, kind)
            weight_EO = alphas.with_decisions(kind, cell_weights.weight_EO)
            edge_weights[kind] = cell_weights._replace(weight_EO=weight_EO, edge_E=edge_E, skip=skip)
        return read_active(edge_weights)

    def probabilities(self, space: SearchSpace, alphas: Alphas) -> dict[str, Tensor]:
        """The weights from which a genotype is derived: (E, O) for each kind of cell.

        They are multiplied by the weight of the edge if a method has such weights, and uniform for a method
        without a table of parameters.
        """
        found = {}
        for kind in space.cells:
            allowed_EO = space.allowed_mask(kind)
            # Nothing is learned on edges: each allowed operation is as good as another.
            if not self.has_architecture_step:
                found[kind] = allowed_EO / allowed_EO.sum(-1, keepdim=True)
                continue
            alpha_EO = alphas.operations[kind]
            weight_EO = self.relaxation.probabilities(alpha_EO, allowed_EO.to(alpha_EO.device))
            weight_EO = alphas.with_decisions(kind, weight_EO)
            edge_E = self._weights_of_edges(space, alphas, kind)
            if edge_E is not None:
                weight_EO = weight_EO * edge_E[:, None]
            found[kind] = weight_EO.detach().cpu()
        return found

    def _weights_of_edges(self, space: SearchSpace, alphas: Alphas, kind: str) -> Tensor | None:
        """(E,): among the edges into each node they sum to 1."""
        if kind not in alphas.edges:
            return None
        beta_E = alphas.edges[kind]
        return torch.cat([self.relaxation.over_edges(beta_E[into]) for into in space.entering])

    def optimizer(self, space: SearchSpace, alphas: Alphas) -> torch.optim.Optimizer:
        """The optimiser that moves the parameters."""
        rows: list[Rows] = [(slice(None),)] * len(alphas.operations)  # each edge's operations compete
        rows += [space.entering] * len(alphas.edges)  # the edges into each node compete
        return self.geometry.build(alphas.all(), rows)

    def genotype(self, state: SearchState) -> AnyGenotype:
        """The current choice."""
        probabilities = self.probabilities(state.space, state.alphas)
        return derive_genotype(state.space, probabilities, self.derivation)

    def final_genotype(self, state: SearchState) -> AnyGenotype:
        """The choice at the end; a method that compares candidates does so here."""
        if self.selection is not None:
            self._decide(state, self.selection.decisions(state.space))
        return self.genotype(state)

    def refuse(self, space: SearchSpace) -> str | None:
        """A sentence on why this method cannot search this space; None if it can."""
        why = self._misfit(space)
        return f"Method {self.name} cannot search space {space.name}: {why}." if why else None

    def _misfit(self, space: SearchSpace) -> str | None:
        if space.name == "recurrent":
            if self.partial > 1:
                return "partial channels need channels"
            if self.level != "bilevel":
                return "weights and architecture learn from two texts; take --method.level bilevel"
            if self.auxiliary_skip is not None:
                return "an auxiliary skip is written for images"
            if any(isinstance(penalty, CostPenalty) for penalty in self.penalties):
                return "costs are known for networks of images; leave out the penalty cost"
            if not self.relaxation.sums_to_one:
                return "the weights of an edge do not sum to 1, as a recurrent state needs"
        if CHAIN in space.cells and (self.partial > 1 or self.edge_weights):
            return "partial channels and weights of edges are for cells, whose nodes have several edges"
        if CHAIN in space.cells and self.selection is not None:
            return "selection by perturbation is written for cells"
        if len(space.cells) < 2 and any(isinstance(penalty, PathDepth) for penalty in self.penalties):
            return "path_depth weighs normal and reduction cells; leave it out with --method.penalties ''"
        if isinstance(self.relaxation, HardConcrete):
            fewest = min(int(space.allowed_mask(kind).sum(-1).min()) for kind in space.cells)
            if self.relaxation.keep > fewest:
                return "method.relaxation.keep is more than the operations of an edge"
        return None
