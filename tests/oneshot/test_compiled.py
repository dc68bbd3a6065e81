"""Compiled parts: torch finds no place where it would leave one, and results are those of eager parts.

All but one test let torch trace only, which is where a part that cannot be compiled shows. The code that is
traced is the one that a GPU runs: see `engine.compute.fast`.
"""

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from engine.blocks.elastic import ElasticConvBN
from engine.compute.compiling import compile_parts, eagerly
from engine.data.digits import Digits
from engine.data.sources import load_data
from ofa.space.arch import largest, single_arch_space
from ofa.space.space import Space
from ofa.supernet import Supernet
from ofa.train import compiled_parts
from oneshot.axes.progress import Progress
from oneshot.methods.method import Method
from oneshot.methods.pc_darts import PcDarts
from oneshot.methods.sampled.gdas import Gdas
from oneshot.networks.final import FinalNetwork
from oneshot.networks.parallel_edges import ParallelEdges
from oneshot.objectives.images import ImageObjective, search_network
from oneshot.searcher import Searcher
from oneshot.spaces.cells import find_space
from oneshot.spaces.read_genotype import find_genotype

CPU = torch.device("cpu")
# torch's own look at its inputs, which is no error where warnings are none.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> None:
    torch._dynamo.reset()
    counters.clear()


def searcher(method: Method, space_name: str) -> Searcher:
    space = find_space(space_name)
    torch.manual_seed(0)
    network = search_network(space, method, 4, 1 if space_name == "nasbench201" else 3, 10, 1)
    data = load_data(Digits(val=0.5), CPU, 0)
    found = Searcher(method, space, ImageObjective(network, data, 8, method.level == "single"), 0, 4)
    found.state.progress = Progress(method.warmup_epochs, 4)
    return found


def learned(search: Searcher, steps: int) -> list[Tensor]:
    batches = search.state.objective.batches(0, 0)
    losses = [search.step(number, *next(batches)) for number in range(steps)]
    return [*losses, *search.state.alphas.all(), *search.state.objective.network.state_dict().values()]


def assert_close(ours: list[Tensor], wanted: list[Tensor]) -> None:
    for a, b in zip(ours, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_search_step_has_no_graph_breaks() -> None:
    method = PcDarts(order="second", warmup_epochs=0, partial=2)
    eager, compiled = searcher(method, "nasbench201"), searcher(method, "nasbench201")
    compiled.compile(strict=True, backend="eager")
    assert_close(learned(compiled, 2), learned(eager, 2))
    assert counters["stats"]["unique_graphs"] > 1 and not counters["graph_break"]
    traced = counters["stats"]["unique_graphs"]
    batch = next(compiled.state.objective.batches(0, 0))[1]
    # Other sizes, and gradients of gradients: eager, so nothing is traced again.
    assert compiled.measure(20) == eager.measure(20)
    assert compiled.eigenvalue(batch) == pytest.approx(eager.eigenvalue(batch), rel=1e-2)
    assert counters["stats"]["unique_graphs"] == traced


def test_a_method_that_draws_is_not_compiled(capsys: pytest.CaptureFixture[str]) -> None:
    searcher(Gdas(), "nasbench201").compile()
    said = capsys.readouterr().out
    assert said == "the network is not compiled: method gdas draws in each step which operations run\n"


@pytest.mark.slow
def test_a_retraining_step_has_no_graph_breaks() -> None:
    torch.manual_seed(0)
    network, x = FinalNetwork(find_genotype("DARTS_V2"), 4, 3, auxiliary=True), torch.randn(4, 3, 32, 32)
    wanted = network(x, 0.3, torch.Generator().manual_seed(0))
    compile_parts(network.compiled_parts(), strict=True, backend="eager")
    ours = network(x, 0.3, torch.Generator().manual_seed(0))
    assert_close([*ours], [*wanted])
    sum(logits.sum() for logits in ours).backward()
    assert counters["stats"]["unique_graphs"] == len(network.cells) and not counters["graph_break"]
    with eagerly():
        network.eval()(x)
    assert counters["stats"]["unique_graphs"] == len(network.cells)


@pytest.mark.slow
def test_a_network_trained_alone_is_compiled_layer_by_layer(tiny: Space) -> None:
    space = single_arch_space(tiny, largest(tiny))
    torch.manual_seed(0)
    supernet, x = Supernet(space, 5), torch.randn(8, 3, 12, 12)
    wanted = supernet(x, largest(space))
    parts = compiled_parts(supernet)
    assert any(isinstance(part, ElasticConvBN) for part in parts)
    compile_parts(parts, strict=True, backend="eager")
    assert_close([supernet(x, largest(space))], [wanted])
    # Parts that are alike are compiled once.
    assert 1 < counters["stats"]["unique_graphs"] < len(parts) and not counters["graph_break"]


@pytest.mark.slow
def test_compiled_kernels_compute_what_eager_ones_do() -> None:
    """By the compiler that runs compiled: the operations of one edge, forward and backward."""
    torch.manual_seed(0)
    space = find_space("nasbench201")
    edges = ParallelEdges(space.operations, torch.ones(1, 5, dtype=torch.bool), 4, 1)
    x, weight_nO = torch.randn(2, 4, 8, 8), torch.rand(1, 5, requires_grad=True)

    def results() -> list[Tensor]:
        y = edges(x, weight_nO, None, None, False)[0]
        return [y, *torch.autograd.grad(y.square().sum(), [weight_nO, *edges.parameters()])]

    wanted = results()
    compile_parts([edges], strict=True)
    assert_close(results(), wanted)
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
