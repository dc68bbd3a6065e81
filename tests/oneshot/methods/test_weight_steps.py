"""Methods that change how weights are trained, and FairDARTS, against their formulas written anew."""

import io
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.data.digits import Digits
from engine.data.sources import load_data
from oneshot.axes.edge_weights import EdgeWeights, own_key
from oneshot.axes.penalty import Anchor, PenaltyInputs, ZeroOne
from oneshot.axes.progress import Progress
from oneshot.axes.relaxation import Dirichlet, Sigmoid
from oneshot.methods.fair_darts import FairDarts
from oneshot.methods.method import Method
from oneshot.methods.weights.lambda_darts import LambdaDarts, alignment_gradients
from oneshot.methods.weights.oles import Oles
from oneshot.methods.weights.sdarts import Sdarts
from oneshot.networks.search import DartsNetwork
from oneshot.objectives.images import ImageObjective, search_network
from oneshot.searcher import Searcher
from oneshot.spaces.cells import find_space
from oneshot.spaces.genotype import Genotype

CPU = torch.device("cpu")
IMAGES = load_data(Digits(val=0.5), CPU, 0)


def started(method: Method, space_name: str = "nasbench201", cells: int = 1, epochs: int = 4) -> Searcher:
    space = method.offered(find_space(space_name))
    torch.manual_seed(0)
    network = search_network(space, method, 4, cells, 10, 1)
    return Searcher(method, space, ImageObjective(network, IMAGES, 16, False), 0, epochs)


# --- FairDARTS ---


def test_zero_one_loss_is_the_mean_square_from_a_half() -> None:
    space = find_space("nasbench201").without("none")
    alphas = {"cell": torch.randn(6, 5, dtype=torch.double)}
    inputs = PenaltyInputs(space, alphas, {}, Sigmoid(), Progress(0, 10), {})
    competes = alphas["cell"][:, 1:].sigmoid()
    wanted = 2.0 - 10 * F.mse_loss(competes, torch.full_like(competes, 0.5))
    torch.testing.assert_close(ZeroOne()(torch.tensor(2.0, dtype=torch.double), inputs), wanted)
    wanted = 2.0 - 10 * F.l1_loss(competes, torch.full_like(competes, 0.5))
    torch.testing.assert_close(ZeroOne(power=1)(torch.tensor(2.0, dtype=torch.double), inputs), wanted)


def test_fair_darts_keeps_what_reaches_the_threshold() -> None:
    search = started(FairDarts(), "darts", 3)
    alphas = search.state.alphas.operations
    sep, pool, skip = (
        search.state.space.operations.index(n) for n in ("sep_conv_3x3", "max_pool_3x3", "skip_connect")
    )
    with torch.no_grad():
        # Before anything reaches 0.85, the cell is read off as DARTS's.
        first = search.method.genotype(search.state)
        assert isinstance(first, Genotype) and [len(n) for n in first.cells["normal"].nodes] == [2] * 4
        alphas["normal"].fill_(-3.0)
        alphas["normal"][1, sep] = 3.0  # 1 -> 2
        alphas["normal"][0, pool] = 1.0  # 0 -> 2, below the threshold: sigmoid(1) = 0.73
        alphas["normal"][5, skip] = 2.0  # 0 -> 4
        alphas["normal"][8, sep] = 4.0  # 3 -> 4, but nothing reaches node 3
        alphas["normal"][9 + 2, sep] = 2.5  # 2 -> 5
    found = search.method.genotype(search.state)
    assert isinstance(found, Genotype)
    normal = found.cells["normal"]
    assert normal.nodes == ((("sep_conv_3x3", 1),), (), (("skip_connect", 0),), (("sep_conv_3x3", 2),))
    assert normal.output == (2, 4, 5)
    assert found.cells["reduce"] == first.cells["reduce"]
    weights = search.method.probabilities(search.state.space, search.state.alphas)
    (doubt,) = search.method.doubts(search.state.space, weights)
    assert doubt.startswith(
        "no operation of the reduce cell reached the threshold 0.85 (the strongest weighs 0.5"
    )
    with torch.no_grad():
        alphas["normal"].fill_(-3.0)
        alphas["normal"][8, sep] = 4.0  # 3 -> 4 alone
    found = search.method.genotype(search.state)
    assert isinstance(found, Genotype) and [len(n) for n in found.cells["normal"].nodes] == [2] * 4
    weights = search.method.probabilities(search.state.space, search.state.alphas)
    doubt, _ = search.method.doubts(search.state.space, weights)
    assert doubt.startswith(
        "the operations of the normal cell that reached the threshold 0.85 read only nodes"
    )


def test_anchor_is_the_divergence_from_the_flat_distribution() -> None:
    alpha = torch.tensor([[0.5, -0.7, 0.0]], dtype=torch.double)
    inputs = PenaltyInputs(find_space("darts_s3"), {"normal": alpha}, {}, Dirichlet(), Progress(0, 10), {})
    a = torch.tensor([1.5, torch.exp(torch.tensor(-0.7)), 1.0], dtype=torch.double)
    # KL(Dir(a) || Dir(1, 1, 1)), whose normalising constant is Gamma(3) = 2.
    wanted = torch.lgamma(a.sum()) - torch.lgamma(a).sum() - torch.log(torch.tensor(2.0, dtype=torch.double))
    wanted += ((a - 1) * (torch.digamma(a) - torch.digamma(a.sum()))).sum()
    torch.testing.assert_close(
        Anchor(scale=1.0)(torch.zeros((), dtype=torch.double), inputs), wanted, rtol=1e-6, atol=1e-8
    )


# --- SDARTS ---


def test_radius_grows_as_released() -> None:
    search = started(Sdarts(), epochs=50)
    for epoch in (0, 10, 49):
        search.state.progress = Progress(epoch, 50)
        assert search.method.radius(search.state) == pytest.approx(0.03 + 0.27 * epoch / 50)


def perturbed(search: Searcher, attack: str, epoch: int) -> tuple[dict[str, EdgeWeights], Tensor]:
    method = Sdarts(attack=attack)
    search.state.progress = Progress(epoch, 4)
    given = dict(search.edge_weights("weights"))
    given = {kind: w._replace(weight_EO=w.weight_EO.detach()) for kind, w in given.items()}
    batch = next(search.state.objective.batches(0, 0))[0]
    found = method.perturb(search.state, given, batch, torch.Generator().manual_seed(7))
    with torch.no_grad():
        return dict(found), torch.stack([search.state.objective.loss(batch, w) for w in (given, found)])


def test_random_perturbation_is_uniform_and_projected() -> None:
    search = started(Sdarts())
    start = search.state.alphas.operations["cell"].softmax(-1).detach()
    found, _ = perturbed(search, "random", 3)
    radius = 0.03 + 0.27 * 0.75
    noise = torch.rand(6, 5, generator=torch.Generator().manual_seed(7)) * 2 - 1
    wanted = (start + radius * noise).clamp(0, 1)
    torch.testing.assert_close(found["cell"].weight_EO, wanted / wanted.sum(-1, keepdim=True))


def test_the_adversary_raises_the_training_loss() -> None:
    search = started(Sdarts())
    found, (before, after) = perturbed(search, "adversarial", 3)
    _, (_, random) = perturbed(search, "random", 3)
    assert after > before and after > random
    weight = found["cell"].weight_EO
    torch.testing.assert_close(weight.sum(-1), torch.ones(6))
    assert (weight >= 0).all()


def test_what_all_clamps_to_nothing_keeps_its_largest() -> None:
    search = started(Sdarts())
    weight = torch.full((6, 5), -0.2)
    weight[:, 3] = -0.1
    projected = Sdarts()._project(search.state, "cell", weight)
    assert torch.equal(projected, F.one_hot(torch.full((6,), 3), 5).float())


# --- Lambda-DARTS ---


def mean_cosine(gradients: list[Tensor]) -> Tensor:
    pairs = [
        F.cosine_similarity(a.flatten(), b.flatten(), dim=0) for a, b in itertools.combinations(gradients, 2)
    ]
    return torch.stack(pairs).mean()


def test_directions_are_the_gradient_of_the_mean_cosine() -> None:
    gradients = [torch.randn(6, 5, dtype=torch.double, requires_grad=True) for _ in range(4)]
    wanted = torch.autograd.grad(mean_cosine(gradients), gradients)
    for ours, theirs in zip(alignment_gradients([g.detach() for g in gradients]), wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.slow
def test_regulariser_is_the_exact_gradient_of_the_cosine() -> None:
    search = started(LambdaDarts(strength=0.5, epsilon=1e-5))
    network = search.state.objective.network.double()
    for alpha in search.state.alphas.operations.values():
        alpha.data = alpha.data.double()
    (x, y), _ = next(search.state.objective.batches(0, 0))
    batch = (x.double(), y)
    search.state.progress = Progress(3, 4)
    method = search.method
    assert isinstance(method, LambdaDarts)
    weight = search.state.alphas.operations["cell"].softmax(-1).detach()
    given = method.perturb(search.state, {"cell": EdgeWeights(weight)}, batch, torch.Generator())
    keys = [own_key("cell", number) for number in network.numbers_of("cell")]  # type: ignore[operator]
    assert len(keys) == 3 and set(given) == {"cell", *keys}
    # The exact gradient: the cosine of the cells' gradients, differentiated once more.
    leaves = [given[key].weight_EO for key in keys]
    weights = {name: w.detach().requires_grad_() for name, w in network.named_parameters()}
    loss = search.state.objective.loss(batch, given, weights, create_graph=True)
    inner = torch.autograd.grad(loss, leaves, create_graph=True)
    exact = torch.autograd.grad(
        mean_cosine(list(inner)), list(weights.values()), allow_unused=True, materialize_grads=True
    )
    # Ours: what is added to the gradient of the loss.
    loss = search.state.objective.loss(batch, given)
    loss.backward()
    plain = [torch.zeros_like(w) if w.grad is None else w.grad.clone() for w in network.parameters()]
    for w in network.parameters():
        w.grad = torch.zeros_like(w) if w.grad is None else w.grad
    method.move_weights(search.state, given, batch, lambda: None)
    for w, before, g in zip(network.parameters(), plain, exact, strict=True):
        torch.testing.assert_close(w.grad - before, -0.5 * g, rtol=1e-3, atol=1e-6)


def test_one_normal_cell_has_nobody_to_agree_with() -> None:
    search = started(LambdaDarts(), "darts", 3)
    assert isinstance(search.state.objective.network, DartsNetwork)
    given = {kind: EdgeWeights(torch.rand(14, 8)) for kind in ("normal", "reduce")}
    assert set(search.method.perturb(search.state, given, None, torch.Generator())) == {"normal", "reduce"}


# --- OLES ---


def test_a_convolution_stops_when_its_gradients_disagree() -> None:
    search = started(Oles(window=1, least_cosine=0.0))
    objective, memory = search.state.objective, search.state.memory
    batches = objective.batches(0, 0)
    search.step(0, *next(batches))
    names = [name for name in memory if name.startswith("gradient ")]
    assert names, "the step of the weights is remembered"
    # Two steps of comparison: window + 1, as released. Opposite gradients for all: every convolution stops.
    opposite = {name.removeprefix("gradient "): -memory[name] for name in names}
    for _ in range(2):
        search.method.see_validation_gradients(search.state, opposite)
    stopped = [name for name in memory if name.startswith("stopped ")]
    assert stopped and all(memory[name].all() for name in stopped)
    before = {name: w.detach().clone() for name, w in objective.network.named_parameters()}
    search.step(1, *next(batches))
    for name, w in objective.network.named_parameters():
        assert torch.equal(w, before[name]) == (f"gradient {name}" in memory), name


def test_cosines_are_along_output_channels_of_each_edge() -> None:
    search = started(Oles(window=5))
    search.step(0, *next(search.state.objective.batches(0, 0)))
    memory = search.state.memory
    name = next(name for name in memory if "nor_conv_3x3" in name).removeprefix("gradient ")
    old = memory[f"gradient {name}"]
    new = {
        key.removeprefix("gradient "): torch.randn_like(memory[key]) for key in memory if "gradient" in key
    }
    before = {key: value.clone() for key, value in memory.items()}
    search.method.see_validation_gradients(search.state, new)
    prefix = name.removesuffix(".weight")
    edges = len(memory[f"cosine {prefix}"])
    rows = len(old) // edges
    for edge in range(edges):
        a, b = (g[edge * rows : (edge + 1) * rows] for g in (new[name], old))
        wanted = F.cosine_similarity(a, b, dim=0).mean()
        found = memory[f"cosine {prefix}"][edge] - before.get(f"cosine {prefix}", torch.zeros(edges))[edge]
        torch.testing.assert_close(found, wanted)


def test_memory_survives_a_checkpoint() -> None:
    search, again = started(Oles()), started(Oles())
    search.step(0, *next(search.state.objective.batches(0, 0)))
    file = io.BytesIO()
    torch.save(search.state.state_dict(), file)
    file.seek(0)
    again.state.load_state_dict(torch.load(file, weights_only=True))
    assert set(again.state.memory) == set(search.state.memory)
    assert all(torch.equal(again.state.memory[name], value) for name, value in search.state.memory.items())
