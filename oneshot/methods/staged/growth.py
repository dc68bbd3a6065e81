"""A search network of the stage before, taken over into one with fewer operations and wider edges.

As DrNAS's code (2021, arXiv:2006.10355) does it: what an edge keeps, it keeps with its weights; new channels
are copies of old ones that are drawn at random, for each convolution and edge anew. Weights are copied as
they are, so the network's function changes, unlike in Net2Net (2016, arXiv:1511.05641).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from engine.seed import derive
from oneshot.networks.edge_operations import Convolution, FactorizedSkip, Norm, OwnOperations, Separable
from oneshot.networks.parallel_edges import ParallelEdges


class Taken(NamedTuple):
    """Which parts of an old tensor make a new one, block by block; a block belongs to an edge.

    Args:
        blocks: (n,), for each new block the old one.
        rows: (n, C), for each row of a new block one of the old block.
        columns: (n, I), the same for the second axis; None: all columns in order.
        old_blocks: of the old tensor.
    """

    blocks: Tensor
    rows: Tensor
    columns: Tensor | None
    old_blocks: int

    def __call__(self, old: Tensor) -> Tensor:
        """(n C, I, ...) of an old tensor, or (n C,) of old statistics."""
        own = old.reshape(self.old_blocks, -1, *old.shape[1:])[self.blocks.to(old.device)]
        number = torch.arange(len(own), device=old.device)[:, None]
        own = own[number, self.rows.to(old.device)]
        if self.columns is not None:
            row = torch.arange(own.shape[1], device=old.device)[None, :, None]
            own = own[number[:, :, None], row, self.columns.to(old.device)[:, None, :]]
        return own.flatten(0, 1)


class Carried(NamedTuple):
    """A parameter of the new network, the one that it comes from, and how; None: as it is."""

    old: nn.Parameter
    new: nn.Parameter
    taken: Taken | None

    def of(self, tensor: Tensor) -> Tensor:
        """What was done to the parameter, done to a tensor of its shape, such as its momentum."""
        return tensor.clone() if self.taken is None else self.taken(tensor)


class Growth:
    """Fills a new network from an old one of the same cells.

    Args:
        seed: of the channels that are drawn.
    """

    def __init__(self, seed: int):
        self.draws = torch.Generator().manual_seed(derive(seed, "growth"))
        self.carried: list[Carried] = []

    @torch.no_grad()
    def fill(self, old: nn.Module, new: nn.Module) -> list[Carried]:
        """Copy weights and statistics; what comes from where, for each parameter."""
        # Parallel edges may have other operations and widths; everything else has the same shape.
        inside: set[str] = set()
        for name, module in new.named_modules():
            if isinstance(module, ParallelEdges):
                before = old.get_submodule(name)
                assert isinstance(before, ParallelEdges)
                self._edges(before, module)
                inside.update(f"{name}.{part}" for part in module.state_dict())
        theirs = dict(old.named_parameters())
        for name, parameter in new.named_parameters():
            if name not in inside:
                self._carry(theirs[name], parameter, None)
        for name, buffer in new.named_buffers():
            if name not in inside:
                buffer.copy_(old.get_buffer(name))
        return self.carried

    def _carry(self, old: nn.Parameter, new: nn.Parameter, taken: Taken | None) -> None:
        carried = Carried(old, new, taken)
        new.copy_(carried.of(old))
        self.carried.append(carried)

    def _channels(self, edges: int, old: int, new: int) -> Tensor:
        """(edges, new): the old channels in order, then copies."""
        first = torch.arange(old).expand(edges, old)
        copies = torch.randint(old, (edges, new - old), generator=self.draws)
        return torch.cat([first, copies], 1)

    def _edges(self, old: ParallelEdges, new: ParallelEdges) -> None:
        self.width, self.wider = old.channels, new.channels
        for name, module in new.own.items():
            # An edge's block of rows, where it was among the edges that had the operation.
            positions = [old.allowed[name].index(position) for position in new.allowed[name]]
            self.blocks, self.old_blocks = torch.tensor(positions), len(old.allowed[name])
            before = old.own[name]
            match module:
                case Separable():
                    assert isinstance(before, Separable)
                    self._separable(before, module)
                case Convolution():
                    assert isinstance(before, Convolution)
                    columns, rows = self._copies(), self._copies()
                    self._carry(before.weight, module.weight, self._taken(rows, columns))
                    self._norm(before.norm, module.norm, rows)
                case OwnOperations():
                    assert isinstance(before, OwnOperations)
                    self._own(before, module, positions)
                case FactorizedSkip():
                    assert isinstance(before, FactorizedSkip)
                    self._skip(before, module)
        for name, norm in new.pool_norm.items():
            before_norm = old.pool_norm[name]
            assert isinstance(norm, Norm) and isinstance(before_norm, Norm)
            self.blocks, self.old_blocks = torch.zeros(1, dtype=torch.long), 1
            self._norm(before_norm, norm, self._copies())
        if new.auxiliary is not None:
            assert old.auxiliary is not None
            self.blocks, self.old_blocks = torch.arange(new.edges), old.edges
            self._skip(old.auxiliary, new.auxiliary)

    def _own(self, old: OwnOperations, new: OwnOperations, positions: list[int]) -> None:
        """Modules of a user are of one width in all stages."""
        for edge, position in zip(new.edge, positions, strict=True):
            before = old.edge[position]
            theirs = dict(before.named_parameters())
            for name, parameter in edge.named_parameters():
                self._carry(theirs[name], parameter, None)
            for name, buffer in edge.named_buffers():
                buffer.copy_(before.get_buffer(name))

    def _copies(self) -> Tensor:
        return self._channels(len(self.blocks), self.width, self.wider)

    def _taken(self, rows: Tensor, columns: Tensor | None = None) -> Taken:
        return Taken(self.blocks, rows, columns, self.old_blocks)

    def _separable(self, old: Separable, new: Separable) -> None:
        parts = zip(old.depth, new.depth, old.point, new.point, old.norm, new.norm, strict=True)
        for depth, new_depth, point, new_point, norm, new_norm in parts:
            # The pointwise convolution reads the channels that the depthwise one writes.
            middle, rows = self._copies(), self._copies()
            self._carry(depth, new_depth, self._taken(middle))
            self._carry(point, new_point, self._taken(rows, middle))
            assert isinstance(norm, Norm) and isinstance(new_norm, Norm)
            self._norm(norm, new_norm, rows)

    def _skip(self, old: FactorizedSkip, new: FactorizedSkip) -> None:
        halves = []
        for half, new_half in ((old.even, new.even), (old.odd, new.odd)):
            columns = self._copies()
            rows = self._channels(len(self.blocks), self.width // 2, self.wider // 2)
            self._carry(half, new_half, self._taken(rows, columns))
            halves.append(rows)
        # The second half of the output comes from the second convolution.
        self._norm(old.norm, new.norm, torch.cat([halves[0], halves[1] + self.width // 2], 1))

    def _norm(self, old: Norm, new: Norm, rows: Tensor) -> None:
        """Running statistics, where there are some."""
        if old.mean is None or old.var is None or new.mean is None or new.var is None:
            return
        taken = self._taken(rows)
        new.mean.copy_(taken(old.mean))
        new.var.copy_(taken(old.var))
