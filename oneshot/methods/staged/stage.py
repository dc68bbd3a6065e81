"""Stages of a search: after some epochs operations are dropped, and the network is built anew."""

import itertools
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from engine.config import Config, counted
from engine.seed import derive
from oneshot.axes.progress import Progress
from oneshot.methods.method import Method
from oneshot.methods.staged.growth import Growth
from oneshot.networks.search import cells_network
from oneshot.spaces.cells import CellSpace, has_cells_of_images
from oneshot.spaces.search_space import SearchSpace
from oneshot.state import SearchState


class Stage(Config):
    """What changes when a stage begins. The first one begins with the search: it is the method as it is."""

    epochs: int = Field(ge=1, description="share of the search, in epochs of its published length")
    keep: int | None = Field(None, ge=1, description="operations left on each edge; none: as before")
    partial: int | None = Field(
        None, ge=1, description="K: 1 / K of the channels go through the operations; none: as before"
    )
    extra_cells: int = Field(0, ge=0, description="cells that the search network has more than at first")


class StagedMethod(Method):
    """A method whose search has stages. Each begins with `warmup_epochs` in which the architecture waits."""

    stages: tuple[Stage, ...] = Field((), description="of the search; none: it has one")

    # Whether the next stage's network starts from the weights and alphas of the one before.
    carries_over: ClassVar[bool] = True
    # The network itself is another one from stage to stage.
    steps_differ: ClassVar[bool] = True

    @property
    def channel_parts(self) -> tuple[int, ...]:
        """Those of all stages."""
        later = [stage.partial for stage in self.stages if stage.partial is not None]
        return (self.partial, *later)

    def stage_starts(self, epochs: int) -> list[int]:
        """The first epoch of each stage, in a search of `epochs` epochs."""
        total, before = sum(stage.epochs for stage in self.stages), 0
        starts = []
        for stage in self.stages:
            starts.append(epochs * before // total)
            before += stage.epochs
        return starts or [0]

    def epoch_of_stage(self, progress: Progress) -> tuple[int, int]:
        """(epochs of the current stage before this one, epochs of the stage)."""
        starts = [*self.stage_starts(progress.epochs), progress.epochs]
        stage = max(number for number, start in enumerate(starts[:-1]) if start <= progress.epoch)
        return progress.epoch - starts[stage], starts[stage + 1] - starts[stage]

    def waits(self, progress: Progress) -> bool:
        """In the first epochs of each stage."""
        done, _ = self.epoch_of_stage(progress)
        return done < self.warmup_epochs

    def shortest_stage(self, epochs: int) -> int:
        """The least difference between two starts."""
        starts = [*self.stage_starts(epochs), epochs]
        return min(end - start for start, end in itertools.pairwise(starts))

    def before_epoch(self, state: SearchState) -> None:
        """Begin the stages whose time has come, once each."""
        super().before_epoch(state)
        starts = self.stage_starts(state.progress.epochs)
        for number in range(state.stage + 1, len(starts)):
            if starts[number] <= state.progress.epoch:
                self._begin(state, number)

    def _begin(self, state: SearchState, number: int) -> None:
        stage, old = self.stages[number], cells_network(state.objective.network)
        state.stage = number
        assert isinstance(state.space, CellSpace), "stages are refused on chains"
        space = state.space if stage.keep is None else self._pruned(state.space, state, stage.keep)
        # Cells are counted from those of the first stage.
        before = self.stages[number - 1].extra_cells
        cells = old.size.cells + stage.extra_cells - before
        state.rebuild(space, stage.partial or old.settings.partial, cells)
        new = state.objective.network
        momentum = self._carry_over(state, old, new) if self.carries_over else {}
        state.restart_weights(momentum)
        print(f"stage {number + 1}: {self._about(state)}")

    def _pruned(self, space: CellSpace, state: SearchState, keep: int) -> CellSpace:
        """The space with the `keep` operations of each edge that have the largest probabilities."""
        allowed = {}
        for kind, alpha_EO in state.alphas.operations.items():
            competes_EO = space.allowed_mask(kind, alpha_EO.device)
            ranked = self.relaxation.probabilities(alpha_EO.detach(), competes_EO)
            ranked = ranked.masked_fill(~competes_EO, -1.0)
            best = ranked.topk(min(keep, ranked.shape[1]), -1).indices
            kept_EO = torch.zeros_like(competes_EO).scatter(1, best, True) & competes_EO
            allowed[kind] = kept_EO.cpu()
            with torch.no_grad():
                self.forget(alpha_EO, kept_EO, state)
        return space.narrowed(allowed)

    def forget(self, alpha_EO: Tensor, kept_EO: Tensor, state: SearchState) -> None:
        """Set parameters back where a stage begins: those of what was dropped to 0."""
        alpha_EO[~kept_EO] = 0.0

    def _carry_over(self, state: SearchState, old: nn.Module, new: nn.Module) -> dict[nn.Parameter, Tensor]:
        """Fill the new network from the old one; the momentum of its weights."""
        carried = Growth(derive(state.seed, "stage", state.stage)).fill(old, new)
        momentum = {}
        for parameter in carried:
            buffer = state.weight_optimizer.state.get(parameter.old, {}).get("momentum_buffer")
            if buffer is not None:
                momentum[parameter.new] = parameter.of(buffer)
        return momentum

    def _about(self, state: SearchState) -> str:
        """What competes now, in words."""
        most = 0
        for kind in state.space.cells:
            most = max(most, int(state.space.allowed_mask(kind).sum(-1).max()))
        network = cells_network(state.objective.network)
        return (
            f"{counted(most, 'operation')} an edge, 1 / {network.settings.partial} of the channels, "
            f"{counted(network.size.cells, 'cell')}"
        )

    def _misfit(self, space: SearchSpace) -> str | None:
        if len(self.stages) > 1 and not has_cells_of_images(space):
            return "stages are for cells of images; take --method.stages '[]' and --method.partial 1"
        widens = any(stage.partial not in (None, self.partial) for stage in self.stages)
        if isinstance(space, CellSpace) and space.constructors and widens:
            return "stages widen operations that they know; leave out `partial` in --method.stages"
        return super()._misfit(space)
