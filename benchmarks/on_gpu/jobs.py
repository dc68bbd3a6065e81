"""Training steps of the product, set up on a device: what is checked, compared and timed.

Their networks are drawn on the CPU from a seed, so the same job on two devices starts from the same weights.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.blocks.elastic import add_gradients_in_place
from engine.compute.compiling import compile_parts
from engine.compute.graphs import GraphedStep, graphed_step, steady
from engine.config import over_defaults, validate
from engine.data.digits import Digits
from engine.data.sources import load_data
from engine.data.text import Text
from engine.optim import SGD, build_sgd, clip_gradients
from ofa.space.space import load_space
from ofa.supernet import Supernet
from ofa.training.sandwich import Sandwich, Seeds, sandwich_step
from oneshot.axes.operation_costs import operation_costs
from oneshot.axes.progress import Progress
from oneshot.methods.method import Method
from oneshot.networks.dropout import Dropout
from oneshot.networks.final import FinalNetwork
from oneshot.objectives.images import ImageObjective, search_network
from oneshot.objectives.text import TextObjective, TextSettings
from oneshot.search import Search
from oneshot.searcher import Searcher
from oneshot.spaces.cells import CellSpace, find_space
from oneshot.spaces.read_genotype import find_genotype

NO_DROPOUT = Dropout(output=0, hidden=0, inputs=0, embedding=0)
# A few of what methods draw, so that a step of theirs does not take long.
FEW = {"candidates": 2, "finalists": 2, "batches": 2, "controller_steps": 1, "samples_a_step": 1}
# Ways of running that compile, with torch's name of what compiles; a rehearsal only traces.
COMPILED = {"compiled": "inductor", "traced": "eager"}


class Job(NamedTuple):
    """A training step.

    Args:
        items: images or words that its weights learn from.
        step: takes the number of the step, from 0; returns its losses.
        learned: the tensors that it changes.
        state_dict: what a resumed run needs, and `load_state_dict` takes.
        why_eager: why its steps are not graphs, though they should be; empty: they are, or should not.
    """

    items: int
    step: Callable[[int], Tensor]
    learned: Callable[[], list[Tensor]]
    state_dict: Callable[[], dict[str, Any]]
    load_state_dict: Callable[[dict[str, Any]], None]
    why_eager: Callable[[], str] = str


class Size(NamedTuple):
    """How large a search is. cells: in NAS-Bench-201 in each of three stages; side: of images in pixels."""

    channels: int
    cells: int
    batch: int
    side: int = 32
    inputs: int = 3


def method_of(name: str, space: CellSpace, settings: dict[str, Any], few: bool = True) -> Method:
    """A method with what was published for the space, as the command builds it."""
    values = Search.prepare({"method": {"name": name, **settings}, "space": space.name})
    method = validate(Search, over_defaults(Search, values), "benchmark").method
    if not few:
        return method
    return method.model_copy(update={k: v for k, v in FEW.items() if k in type(method).model_fields})


def searched_images(
    method: Method,
    space: CellSpace,
    size: Size,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    way: str = "eager",
) -> Job:
    """A search step on random images; methods that ask for more batches get digits, of one channel."""
    torch.manual_seed(0)
    network = search_network(space, method, size.channels, size.cells, 10, size.inputs).to(dtype)
    # The digits are there for what an objective asks of its data; most steps never read them.
    data = load_data(Digits(val=0.5), device, 0)
    single, two_batches = method.level != "bilevel", method.level == "released"
    objective = ImageObjective(network, data, size.batch, single, two_batches)
    generator = torch.Generator().manual_seed(1)
    batches = []
    for _ in range(4):
        images = torch.randn(size.batch, size.inputs, size.side, size.side, generator=generator)
        labels = torch.randint(10, (size.batch,), generator=generator)
        x = images.to(device, dtype).contiguous(memory_format=torch.channels_last)
        batches.append((x, labels.to(device)))
    pairs = itertools.cycle([(batches[0], batches[1]), (batches[2], batches[3])])
    return _searched(method, space, objective, pairs, size.batch, dtype, way)


def searched_text(
    method: Method,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    settings: TextSettings | None = None,
    batch: int = 64,
    words: int = 10_000,
    way: str = "eager",
) -> Job:
    """A search step on random words; the windows go on through the text."""
    settings = settings or TextSettings()
    generator = torch.Generator().manual_seed(1)
    splits = {}
    for split in ("train", "val", "test"):
        splits[split] = torch.randint(words, (batch * (settings.bptt * 40 + 1),), generator=generator)
    text = Text([f"word{i}" for i in range(words)], splits)  # type: ignore[arg-type]
    objective = TextObjective(text, settings, batch, 0, device)
    objective.network.to(dtype)

    def windows() -> Iterator[tuple[Any, Any]]:
        for epoch in itertools.count():
            yield from objective.batches(epoch, 0)

    space = find_space("recurrent")
    return _searched(method, space, objective, windows(), batch * settings.bptt, dtype, way)


def _searched(
    method: Method,
    space: CellSpace,
    objective: Any,
    pairs: Iterator[tuple[Any, Any]],
    items: int,
    dtype: torch.dtype,
    way: str,
) -> Job:
    device = next(objective.network.parameters()).device
    epochs = method.warmup_epochs + 4
    costs = operation_costs(method.penalties, space, device)
    searcher = Searcher(method, space, objective, 0, epochs, costs)
    # From the first epoch on that moves the architecture.
    searcher.state.progress = Progress(method.warmup_epochs, epochs)
    for parameter in searcher.state.alphas.all():
        parameter.data = parameter.data.to(dtype)

    if way in COMPILED:
        searcher.compile(backend=COMPILED[way])
    if way != "eager":
        searcher.use_graphs("auto")

    def step(number: int) -> Tensor:
        return searcher.step(number, *next(pairs))

    def why_eager() -> str:
        if way == "eager":
            return ""
        return searcher.varies() or no_graph(searcher.graph)

    def learned() -> list[Tensor]:
        return [*objective.network.parameters(), *searcher.state.alphas.all()]

    state = searcher.state
    return Job(items, step, learned, state.state_dict, state.load_state_dict, why_eager)


def no_graph(graph: GraphedStep | None) -> str:
    """Why steps are not graphs; empty if they are."""
    if graph is None or graph.recording is None:
        return "the step could not be recorded; see what was printed"
    return ""


def supernet(
    space_name: str,
    batch: int,
    side: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    config: Sandwich | None = None,
    way: str = "eager",
) -> Job:
    """A sandwich step with its update, on random images of 1,000 classes."""
    torch.manual_seed(0)
    space, sgd = load_space(space_name), SGD()
    net = Supernet(space, 1000, 3).to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = build_sgd(sgd, net)
    config = config or Sandwich()
    add_gradients_in_place(net)  # as a run of one process does
    x, y = random_images(batch, side, 1000, device, dtype)

    def step(number: int) -> Tensor:
        optimizer.zero_grad()
        losses = sandwich_step(net, x, y, number, config, seeds=Seeds(0, 0))
        clip_gradients(sgd, net)
        optimizer.step()
        return losses

    return _trained(net, optimizer, step, batch)


def retrained(
    channels: int,
    cells: int,
    batch: int,
    side: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    drop_path: float = 0.2,
    way: str = "eager",
) -> Job:
    """A step of retraining DARTS_V2, with its auxiliary head."""
    torch.manual_seed(0)
    sgd = SGD(lr=0.025, nesterov=False, weight_decay=3e-4, clip_value=None, clip_norm=5)
    net = FinalNetwork(find_genotype("DARTS_V2"), channels, cells, 10, 3, auxiliary=True)
    net = net.to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = build_sgd(sgd, net)
    x, y = random_images(batch, side, 10, device, dtype)

    draws = torch.Generator(device)
    graph = None
    if way in COMPILED:
        compile_parts(net.compiled_parts(), backend=COMPILED[way])
    if way != "eager":
        graph = graphed_step("auto", device, None, [draws])
        steady(optimizer, device)

    def move(x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad()
        losses = torch.stack([F.cross_entropy(logits, y) for logits in net(x, drop_path, draws)])
        (losses[0] + 0.4 * losses[1]).backward()
        clip_gradients(sgd, net)
        optimizer.step()
        return losses.detach()

    def step(number: int) -> Tensor:
        draws.manual_seed(number)
        return move(x, y) if graph is None else graph.run(None, move, (x, y))

    def why_eager() -> str:
        return "" if way == "eager" else no_graph(graph)

    return _trained(net, optimizer, step, batch, why_eager)


def random_images(
    batch: int, side: int, classes: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The same images and labels on every device."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 3, side, side, generator=generator).to(device, dtype)
    y = torch.randint(classes, (batch,), generator=generator)
    return x.contiguous(memory_format=torch.channels_last), y.to(device)


def _trained(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: Callable[[int], Tensor],
    items: int,
    why_eager: Callable[[], str] = str,
) -> Job:
    def learned() -> list[Tensor]:
        return list(net.parameters())

    def state_dict() -> dict[str, Any]:
        return {"network": net.state_dict(), "optimizer": optimizer.state_dict()}

    def load_state_dict(state: dict[str, Any]) -> None:
        net.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])

    return Job(items, step, learned, state_dict, load_state_dict, why_eager)
