"""ENAS's controller (2018, arXiv:1802.03268): an LSTM that draws an architecture, decision by decision."""

import torch
from torch import Tensor, nn

from oneshot.methods.sampled.architecture import Architecture, offered_operations
from oneshot.spaces.search_space import SearchSpace


class Controller(nn.Module):
    """Decides for each node its edges, where not all are kept, and their operations.

    Args:
        space: what is searched.
        size: units of the LSTM.
        layers: layers of the LSTM.
        temperature: logits are divided by it.
        tanh: the limit of the logits, which lie between minus and plus this number.
    """

    average: Tensor  # of rewards; nan before the first one

    def __init__(self, space: SearchSpace, size: int, layers: int, temperature: float, tanh: float):
        super().__init__()
        self.space, self.size, self.temperature, self.tanh = space, size, temperature, tanh
        # The most options that a decision has: operations, or edges into the last node.
        self.width = max(len(space.operations), space.inputs + space.nodes - 1)
        self.cells = nn.ModuleList(nn.LSTMCell(size, size) for _ in range(layers))
        self.first = nn.Parameter(torch.empty(size))  # the input of the first decision
        # An edge and its operation are at most two decisions; each has an embedding for each option.
        decisions = 2 * len(space.cells) * len(space.edges)
        self.seen = nn.Embedding(decisions * self.width, size)
        self.edge_head = nn.Linear(size, self.width)
        self.operation_head = nn.Linear(size, len(space.operations))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.1, 0.1)
        self.register_buffer("average", torch.tensor(torch.nan))

    def forward(self, draws: torch.Generator) -> tuple[Architecture, Tensor, Tensor]:
        """Draw an architecture.

        Returns:
            The architecture, the log-probability of having drawn it, and the entropy of the decisions.
        """
        decisions = Decisions(self, draws)
        architecture = {kind: self._cell(kind, decisions) for kind in self.space.cells}
        return architecture, decisions.log_probability, decisions.entropy

    def _cell(self, kind: str, decisions: "Decisions") -> tuple[tuple[int, int], ...]:
        """(edge, operation) of one kind of cell, node by node."""
        pairs = []
        for into in self.space.entering:
            for position in self._edges(into.stop - into.start, decisions):
                edge = into.start + position
                options = offered_operations(self.space, kind, edge)
                pairs.append((edge, decisions.decide(self.operation_head, options)))
        return tuple(pairs)

    def _edges(self, count: int, decisions: "Decisions") -> list[int]:
        """The edges that a node keeps of its `count`, in order."""
        free, keeps = list(range(count)), self.space.keeps
        if keeps is None or keeps >= count:
            return free
        kept = []
        for _ in range(keeps):
            edge = decisions.decide(self.edge_head, free)
            kept.append(edge)
            free.remove(edge)
        return sorted(kept)

    def follow(self, reward: float, decay: float) -> None:
        """Move the average towards a reward; the first reward starts it."""
        # In place, since the average is a buffer: a checkpoint holds it.
        start = self.average.isnan()
        self.average.copy_(torch.where(start, reward, self.average.lerp(torch.tensor(reward), 1 - decay)))


class Decisions:
    """The decisions about one architecture, each of which is the LSTM's next input."""

    def __init__(self, controller: Controller, draws: torch.Generator):
        self.controller, self.draws = controller, draws
        first = controller.first
        self.log_probability = self.entropy = first.new_zeros(())
        self._input, self._count = first[None], 0
        zeros = first.new_zeros(1, controller.size)
        self._states = [(zeros, zeros) for _ in controller.cells]

    def decide(self, head: nn.Linear, options: list[int]) -> int:
        """Draw one of `options`."""
        controller, x = self.controller, self._input
        for number, cell in enumerate(controller.cells):
            self._states[number] = cell(x, self._states[number])
            x = self._states[number][0]
        # Bounded logits keep every option possible, so the controller goes on exploring.
        logits = controller.tanh * torch.tanh(head(x)[0] / controller.temperature)
        mask = torch.full_like(logits, -torch.inf)
        mask[options] = 0.0
        log_p = (logits + mask).log_softmax(-1)
        taken = int(torch.multinomial(log_p.detach().exp(), 1, generator=self.draws))
        self.log_probability = self.log_probability + log_p[taken]
        # Over the options only: 0 log 0 of a masked one would be nan.
        self.entropy = self.entropy - (log_p[options].exp() * log_p[options]).sum()
        # What was decided is the next input, with an embedding for each place and option.
        self._input = controller.seen.weight[self._count * controller.width + taken][None]
        self._count += 1
        return taken
