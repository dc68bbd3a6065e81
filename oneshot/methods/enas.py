"""ENAS: Efficient Neural Architecture Search via Parameter Sharing (2018, arXiv:1802.03268). Settings of
NAS-Bench-201's search.

The weights' steps train architectures that the controller draws; after each epoch the controller is trained
by REINFORCE on the accuracy that its architectures reach with the shared weights.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from engine.command.progress import progress
from engine.seed import derive, torch_generator
from oneshot.axes.edge_weights import Mixture
from oneshot.axes.relaxation import At
from oneshot.methods.method import PUBLISHED, Alphas, Method, Sgd
from oneshot.methods.random_ws import best_of
from oneshot.methods.sampled import Choice, as_genotype, as_mixtures, offered
from oneshot.spaces.cells import CellSpace
from oneshot.spaces.genotype import Genotype

if TYPE_CHECKING:
    from oneshot.state import Searching


class Controller(nn.Module):
    """An LSTM that decides one thing after another: for each node its edges, where not all are kept, and
    their operations."""

    average: Tensor

    def __init__(self, space: CellSpace, size: int, layers: int, temperature: float, tanh: float):
        super().__init__()
        self.space, self.size, self.layers, self.temperature, self.tanh = (
            space,
            size,
            layers,
            temperature,
            tanh,
        )
        width = max(len(space.operations), space.inputs + space.nodes - 1)
        self.cells = nn.ModuleList(nn.LSTMCell(size, size) for _ in range(layers))
        self.first = nn.Parameter(torch.empty(size))
        decisions = len(space.cells) * len(space.edges)
        self.seen = nn.Embedding(2 * decisions * width, size)
        self.edge_head, self.operation_head = nn.Linear(size, width), nn.Linear(size, len(space.operations))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.1, 0.1)
        self.width = width
        self.register_buffer("average", torch.tensor(torch.nan))  # of rewards; the first one starts it

    def forward(self, draws: torch.Generator) -> tuple[Choice, Tensor, Tensor]:
        """(an architecture, the log-probability of having drawn it, the entropy of the decisions)."""
        log_probability = entropy = self.first.new_zeros(())
        state = [
            (self.first.new_zeros(1, self.size), self.first.new_zeros(1, self.size))
            for _ in range(self.layers)
        ]
        x, place, choice = self.first[None], 0, dict[str, tuple[tuple[int, int], ...]]()

        def decide(head: nn.Linear, options: list[int]) -> int:
            nonlocal x, place, log_probability, entropy
            for number, cell in enumerate(self.cells):
                state[number] = cell(x, state[number])
                x = state[number][0]
            logits = self.tanh * torch.tanh(head(x)[0] / self.temperature)
            allowed = torch.full_like(logits, -torch.inf)
            allowed[options] = 0.0
            log_p = (logits + allowed).log_softmax(-1)
            taken = int(torch.multinomial(log_p.detach().exp(), 1, generator=draws))
            log_probability = log_probability + log_p[taken]
            entropy = entropy - (log_p[options].exp() * log_p[options]).sum()
            x = self.seen.weight[place * self.width + taken][None]
            place += 1
            return taken

        for kind in self.space.cells:
            pairs = []
            for into in self.space.entering:
                free = list(range(into.stop - into.start))
                edges = free
                if self.space.keeps is not None and self.space.keeps < len(free):
                    edges = []
                    for _ in range(self.space.keeps):
                        edges.append(decide(self.edge_head, free))
                        free = [edge for edge in free if edge not in edges]
                for edge in (into.start + position for position in sorted(edges)):
                    pairs.append((edge, decide(self.operation_head, offered(self.space, kind, edge))))
            choice[kind] = tuple(pairs)
        return choice, log_probability, entropy

    def follow(self, reward: float, decay: float) -> None:
        """Move the average towards a reward."""
        start = self.average.isnan()
        self.average.copy_(torch.where(start, reward, self.average.lerp(torch.tensor(reward), 1 - decay)))


class Enas(Method):
    """A controller draws architectures and learns from how well they do with shared weights."""

    name: Literal["enas"] = "enas"
    size: int = Field(32, ge=1, description="units of the controller's LSTM")
    layers: int = Field(2, ge=1, description="its layers")
    temperature: float = Field(5.0, gt=0, description="logits are divided by it")
    tanh: float = Field(2.5, gt=0, description="and end between minus and plus this")
    lr: float = Field(
        1e-3, gt=0, description="the controller's learning rate (Adam, betas 0 and 0.999, epsilon 1e-3)"
    )
    entropy: float = Field(1e-4, ge=0, description="weight of the decisions' entropy in the reward")
    baseline: float = Field(
        0.99, ge=0, lt=1, description="decay of the moving average that rewards are compared with"
    )
    controller_steps: int = Field(50, ge=1, description="steps of the controller after each epoch")
    samples_a_step: int = Field(20, ge=1, description="architectures that each of them averages over")
    candidates: int = Field(100, ge=1, description="architectures drawn in the end, the best of which wins")
    weights_first: bool = True
    epochs: int = 310
    batch_size: int = 128
    sgd: Sgd = Sgd(lr=0.05, lr_min=5e-4, nesterov=True, weight_decay=2.5e-4, cosine_epochs=10, restart=True)

    learns: ClassVar[bool] = False
    on: ClassVar[Mapping[str, Mapping[str, Any]]] = PUBLISHED | {"nasbench201": {}}

    def start(self, space: CellSpace, seed: int, device: torch.device) -> Alphas:
        """The controller, on CPU: it is tiny and decides one thing at a time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "controller"))
            return Alphas({}, {}, Controller(space, self.size, self.layers, self.temperature, self.tanh))

    def optimizer(self, space: CellSpace, alphas: Alphas) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(alphas.all(), self.lr, (0.0, 0.999), eps=1e-3)

    @torch.no_grad()
    def mixtures(
        self, space: CellSpace, alphas: Alphas, at: At, draws: torch.Generator
    ) -> dict[str, Mixture]:
        """One architecture that the controller draws."""
        assert alphas.controller is not None
        return as_mixtures(space, alphas.controller(draws)[0])

    def after_epoch(self, searching: "Searching") -> None:
        """REINFORCE on validation batches."""
        controller, optimizer = searching.alphas.controller, searching.of_alphas
        assert isinstance(controller, Controller) and optimizer is not None
        batches = searching.task.judges(searching.at.epoch)
        with progress("controller", self.controller_steps) as advance:
            for step in range(self.controller_steps):
                draws = torch_generator("cpu", searching.seed, "controller", searching.at.epoch, step)
                loss = controller.average.new_zeros(())
                for _ in range(self.samples_a_step):
                    choice, log_probability, entropy = controller(draws)
                    reward = (
                        searching.reward(as_mixtures(searching.space, choice), next(batches))
                        + self.entropy * entropy.item()
                    )
                    controller.follow(reward, self.baseline)
                    loss = loss - log_probability * (reward - float(controller.average)) / self.samples_a_step
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(controller.parameters(), 5.0)
                optimizer.step()
                advance(f"mean reward {float(controller.average):.3f}")

    def genotype(self, searching: "Searching") -> Genotype:
        """What the controller draws first."""
        return as_genotype(searching.space, self._drawn(searching, 1)[0])

    def final_genotype(self, searching: "Searching") -> Genotype:
        """The best by shared weights of some that the controller draws."""
        choices = self._drawn(searching, self.candidates)
        return as_genotype(searching.space, best_of(searching, choices, 1, 10))

    @torch.no_grad()
    def _drawn(self, searching: "Searching", count: int) -> list[Choice]:
        controller = searching.alphas.controller
        assert controller is not None
        return [
            controller(torch_generator("cpu", searching.seed, "drawn", searching.at.epoch, number))[0]
            for number in range(count)
        ]
