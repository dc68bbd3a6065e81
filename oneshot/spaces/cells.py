"""Search spaces as data: what a cell looks like and which operations compete on its edges.

A space is a complete ordered graph: after `inputs` input states come `nodes` nodes, and an edge leads to
every node from every state before it. `weight_EO` always means [edges, operations] in the order of `edges`
and `operations`.
"""

import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from engine.config import Config, read_yaml, validate
from engine.errors import UserError, nearest
from oneshot.chains.space import packaged_like
from oneshot.spaces.own_operations import Constructors, find_constructor, located


@dataclass(frozen=True)
class CellSpace:
    """One search space.

    Args:
        name: as in `--space`.
        cells: the kinds of cell that are searched, each with alphas of its own.
        inputs: input states of a cell.
        nodes: nodes of a cell.
        operations: what competes on an edge.
        keeps: edges that a node of a found cell keeps; None: all of them.
        extra_operations: operations that a genotype of this space may name although no search offers them.
        allowed: for each kind of cell and each edge, its operations, where edges differ; None: all on every
            edge.
        constructors: of operations that are a user's own.
    """

    name: str
    cells: tuple[str, ...]
    inputs: int
    nodes: int
    operations: tuple[str, ...]
    keeps: int | None
    extra_operations: tuple[str, ...] = ()
    allowed: dict[str, tuple[tuple[str, ...], ...]] | None = field(default=None, hash=False)
    constructors: Constructors = ()

    @property
    def graph(self) -> str:
        """The space with the same cells: darts, nasbench201 or recurrent."""
        return {PAIR: "darts", ("cell",): "nasbench201"}.get(self.cells, "recurrent")

    @property
    def in_genotypes(self) -> "str | OwnSpace":
        """What a genotype keeps of the space: its name, or what else it takes to have it without its file."""
        if self.name in [space.name for space in SPACES]:
            return self.name
        own = dict(self.constructors)
        operations = {name: own.get(name) for name in self.operations}
        return validate(OwnSpace, {"base": self.graph, "operations": operations}, self.name)

    @cached_property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """(source, target) of every edge, node by node."""
        pairs = []
        for target in range(self.inputs, self.inputs + self.nodes):
            pairs += [(source, target) for source in range(target)]
        return tuple(pairs)

    @cached_property
    def entering(self) -> tuple[slice, ...]:
        """For each node, its edges."""
        slices, start = [], 0
        for target in range(self.inputs, self.inputs + self.nodes):
            slices.append(slice(start, start + target))  # one edge from each state before it
            start += target
        return tuple(slices)

    @cached_property
    def output(self) -> tuple[int, ...]:
        """The states that a found cell returns: all nodes, or the last one where nodes keep all edges."""
        last = self.inputs + self.nodes - 1
        return (last,) if self.keeps is None else tuple(range(self.inputs, last + 1))

    @cached_property
    def known(self) -> tuple[str, ...]:
        """Every operation that a genotype may name."""
        return (*self.operations, *self.extra_operations)

    def allowed_mask(self, kind: str, device: torch.device | str = "cpu") -> Tensor:
        """(E, O) booleans: which operations compete on which edge of a cell of this kind.

        It is the same tensor every time: do not change it in place.
        """
        return _allowed_mask(self, kind, torch.device(device))

    def without(self, operation: str) -> "CellSpace":
        """This space, but `operation` competes on no edge. Columns, and so tables and networks, stay."""
        allowed = {}
        for kind in self.cells:
            offered = self.allowed[kind] if self.allowed else (self.operations,) * len(self.edges)
            rows = [tuple(name for name in names if name != operation) for names in offered]
            allowed[kind] = tuple(rows)
        return replace(self, allowed=allowed)

    def narrowed(self, allowed: Mapping[str, Tensor]) -> "CellSpace":
        """The same space, in which fewer operations compete.

        Args:
            allowed: for each kind of cell the mask (E, O) of those that remain.
        """
        names: dict[str, tuple[tuple[str, ...], ...]] = {}
        for kind, allowed_EO in allowed.items():
            rows = []
            for row in allowed_EO.tolist():
                rows.append(tuple(itertools.compress(self.operations, row)))
            names[kind] = tuple(rows)
        return replace(self, allowed=names)


# Every step asks for the mask, so it is built and copied to the device only once.
@functools.cache
def _allowed_mask(space: CellSpace, kind: str, device: torch.device) -> Tensor:
    if space.allowed is None:
        return torch.ones(len(space.edges), len(space.operations), dtype=torch.bool, device=device)
    rows = []
    for names in space.allowed[kind]:
        rows.append([operation in names for operation in space.operations])
    return torch.tensor(rows, device=device)


DARTS_OPERATIONS = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)

# The reduced spaces of RobustDARTS (Zela et al. 2020, "Understanding and Robustifying Differentiable
# Architecture Search", arXiv:1909.09656), on which plain DARTS collapses. S1 has two operations on each edge,
# which DARTS itself left over. In S4 one of two is noise instead of a function of the input.
_SKIP_3, _SKIP_5 = ("skip_connect", "dil_conv_3x3"), ("skip_connect", "dil_conv_5x5")
_SKIP_SEP, _MAX_SKIP = ("skip_connect", "sep_conv_3x3"), ("max_pool_3x3", "skip_connect")
_DILATED, _POOLS = ("dil_conv_3x3", "dil_conv_5x5"), ("max_pool_3x3", "avg_pool_3x3")
S1: dict[str, tuple[tuple[str, ...], ...]] = {
    "normal": (
        *(_SKIP_3, _SKIP_5),
        *(_SKIP_5, _SKIP_SEP, _SKIP_3),
        *(_MAX_SKIP, _SKIP_SEP, _SKIP_SEP, _SKIP_3),
        *(_SKIP_SEP, _MAX_SKIP, _SKIP_3, _DILATED, _DILATED),
    ),
    "reduce": (
        *(_POOLS, ("max_pool_3x3", "dil_conv_3x3")),
        *(_POOLS, _POOLS, _SKIP_5),
        *(_POOLS, ("max_pool_3x3", "sep_conv_3x3"), _SKIP_3, _SKIP_5),
        *(_POOLS, _POOLS, _SKIP_5, _SKIP_5, _SKIP_5),
    ),
}
S1_OPERATIONS = (
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "dil_conv_3x3",
    "dil_conv_5x5",
)

NASBENCH201_OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
RECURRENT_OPERATIONS = ("none", "tanh", "relu", "sigmoid", "identity")
PAIR = ("normal", "reduce")
NOISE = "noise"  # an operation that passes on normal noise of its input's shape

# The recurrent space keeps one predecessor a node, the spaces of images two, and NAS-Bench-201 every edge.
SPACES = (
    CellSpace("darts", PAIR, 2, 4, DARTS_OPERATIONS, 2, extra_operations=("sep_conv_7x7", "conv_7x1_1x7")),
    CellSpace("nasbench201", ("cell",), 1, 3, NASBENCH201_OPERATIONS, None),
    CellSpace("recurrent", ("recurrent",), 1, 8, RECURRENT_OPERATIONS, 1),
    CellSpace("darts_s1", PAIR, 2, 4, S1_OPERATIONS, 2, allowed=S1),
    CellSpace("darts_s2", PAIR, 2, 4, ("skip_connect", "sep_conv_3x3"), 2),
    CellSpace("darts_s3", PAIR, 2, 4, ("none", "skip_connect", "sep_conv_3x3"), 2),
    CellSpace("darts_s4", PAIR, 2, 4, (NOISE, "sep_conv_3x3"), 2),
)


def has_cells_of_images(space: object) -> bool:
    """Whether a search space is of cells of images: not of text, and not a chain."""
    return isinstance(space, CellSpace) and space.graph != "recurrent"


class OwnSpace(Config):
    """A space of cells whose operations are, all or some, a user's own: a file, or part of a genotype."""

    base: Literal["darts", "nasbench201"] = Field(description="the space whose cells and networks it has")
    operations: dict[str, str | None] = Field(
        min_length=2, description="name and constructor (module:Name); without one, an operation of the base"
    )

    @model_validator(mode="after")
    def _named_well(self) -> Self:
        base = find_space(self.base)
        for name, constructor in self.operations.items():
            if constructor is None and name not in base.operations:
                raise ValueError(
                    f"operation '{name}' needs a constructor (module:Name), since {self.base} has none of "
                    f"this name; {nearest(name, base.operations)}"
                )
            # The search network keeps modules by name beside the attributes of a ModuleDict.
            taken = name in base.known or not name.isidentifier() or hasattr(nn.ModuleDict(), name)
            if constructor is not None and taken:
                raise ValueError(
                    f"an operation of your own cannot be called '{name}'; take letters, digits and "
                    f"underscores, and no name that {self.base} or torch.nn.ModuleDict has"
                )
        return self

    def __str__(self) -> str:
        return f"{self.base} with operations of one's own"

    def cells(self, name: str) -> CellSpace:
        """The space of cells, under a name; nothing is imported before a network is built."""
        own = tuple((key, where) for key, where in self.operations.items() if where is not None)
        operations = tuple(self.operations)
        base = find_space(self.base)
        return replace(base, name=name, operations=operations, extra_operations=(), constructors=own)


def load_own_space(path: str) -> CellSpace:
    """The space in a YAML file: the graph of a known one, and operations of one's own.

    Raises:
        UserError: the file is not valid, or an operation is not known.
    """
    found = validate(OwnSpace, read_yaml(Path(path)), path).cells(path)
    # Relative to the file, wherever the command runs.
    own = tuple((name, located(constructor, Path(path).parent)) for name, constructor in found.constructors)
    for _, constructor in own:
        find_constructor(constructor)
    return replace(found, constructors=own)


def is_own_space(name: str) -> bool:
    """Whether `name` is a YAML file with such a space: it names its base."""
    path = Path(name)
    return path.suffix in (".yaml", ".yml") and path.is_file() and "base" in read_yaml(path)


def settings_space(name: str) -> str:
    """The space whose settings and recipes hold: the one that a file of one's own is like, else the space."""
    return load_own_space(name).graph if is_own_space(name) else packaged_like(name)


def find_space(name: str | OwnSpace) -> CellSpace:
    """The space of that name, `find_space("darts")`; with operations of one's own, also of a file or as data.

    Raises:
        UserError: there is none.
    """
    if isinstance(name, OwnSpace):
        return name.cells(str(name))
    for space in SPACES:
        if space.name == name:
            return space
    if is_own_space(name):
        return load_own_space(name)
    raise UserError(f"There is no search space '{name}'; {nearest(name, [space.name for space in SPACES])}")
