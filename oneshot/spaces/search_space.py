"""What a search method needs of a space, whether it is of cells or of chains, and how a space is found."""

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from engine.errors import UserError, nearest
from oneshot.chains.space import load_chain_space, packaged_chain_spaces
from oneshot.spaces.cells import SPACES, is_own_space, load_own_space


class SearchSpace(Protocol):
    """Kinds of cell, each a graph on whose edges operations compete.

    A chain is one kind of cell, whose every node has one edge, from the node before it.
    """

    @property
    def name(self) -> str:
        """As in `--space`."""
        ...

    @property
    def cells(self) -> tuple[str, ...]:
        """The kinds of cell that are searched, each with alphas of its own."""
        ...

    @property
    def inputs(self) -> int:
        """Input states of a cell."""
        ...

    @property
    def nodes(self) -> int:
        """Nodes of a cell."""
        ...

    @property
    def operations(self) -> tuple[str, ...]:
        """What competes on an edge: the columns of alphas."""
        ...

    @property
    def keeps(self) -> int | None:
        """Edges that a node of what is found keeps; None: all of them."""
        ...

    @property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """(source, target) of every edge: the rows of alphas."""
        ...

    @property
    def entering(self) -> tuple[slice, ...]:
        """For each node, its edges."""
        ...

    def __hash__(self) -> int:
        """Spaces are data: what depends on one alone is computed once."""
        ...

    def allowed_mask(self, kind: str, device: torch.device | str = "cpu") -> Tensor:
        """(E, O) booleans: which operations compete on which edge of a cell of this kind."""
        ...


def find_search_space(name: str) -> SearchSpace:
    """The space of cells or of chains of that name, or the space of chains in a YAML file.

    Raises:
        UserError: there is none, or the file is not valid.
    """
    for space in SPACES:
        if space.name == name:
            return space
    if is_own_space(name):
        return load_own_space(name)
    known = packaged_chain_spaces()
    if name in known or Path(name).is_file():
        return load_chain_space(name)
    names = [*(space.name for space in SPACES), *known]
    raise UserError(f"There is no search space '{name}', and no file of that name; {nearest(name, names)}")
