"""The choices that methods are made of, against recorded values and against their definitions."""

import re

import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter, ValidationError
from reference import pr_darts_names, recorded, theirs
from torch import Tensor

from oneshot.axes.auxiliary_skip import AuxiliarySkip
from oneshot.axes.derivation import derive_genotype
from oneshot.axes.edge_weights import EdgeWeights, read_active
from oneshot.axes.geometry import exponentiated_gradient
from oneshot.axes.penalty import BetaDecay, CostPenalty, Entropy, PathDepth, PenaltyInputs
from oneshot.axes.progress import Progress
from oneshot.axes.relaxation import GumbelHard, HardConcrete, Softmax
from oneshot.methods import MethodConfig
from oneshot.methods.beta_darts import BetaDarts
from oneshot.methods.gaea import Gaea, GaeaPcDarts
from oneshot.methods.method import Method
from oneshot.methods.pc_darts import PcDarts
from oneshot.methods.sampled.gdas import Gdas
from oneshot.methods.sampled.pr_darts import PrDarts
from oneshot.networks.parallel_edges import EdgeSettings
from oneshot.networks.search import DartsNetwork
from oneshot.spaces.cells import find_space

TOLERANCE = {"rtol": 1e-9, "atol": 1e-12}


@pytest.mark.slow
@pytest.mark.parametrize("case", range(6))
def test_recorded_passes_of_pr_darts(case: int) -> None:
    found = recorded("prdarts_small")
    given = found["cases"][case]
    space = find_space("darts")
    theirs_called = [
        name.replace("dua_sepc", "sep_conv").replace("dil_sepc", "dil_conv") for name in found["space"]
    ]
    columns = [theirs_called.index(name) for name in space.operations]  # theirs of ours
    settings = EdgeSettings(pool_norm=False)
    network = (
        DartsNetwork(space, found["C"], 3 * found["N"], settings=settings, last_norm=True)
        .double()
        .to(memory_format=torch.channels_last)
    )
    missing = network.load_state_dict(
        theirs(pr_darts_names(network, space, theirs_called), found["state_dict"]), strict=False
    )
    assert not missing.unexpected_keys and all("num_batches" in name for name in missing.missing_keys)

    relaxation = HardConcrete(dropout=given["dropout"])
    alphas: dict[str, Tensor] = {}
    edge_weights: dict[str, EdgeWeights] = {}
    each = len(given["draws"]) // 2
    for number, kind in enumerate(space.cells):
        draws = dict(given["draws"][number * each : (number + 1) * each])
        alpha = found["alphas"][number].clone().requires_grad_()
        dropped = draws.get("bernoulli", torch.zeros_like(alpha))
        gates = relaxation.given(alpha, draws["rand_like"], dropped, draws["randperm"], given["tau"])
        mixed = read_active({kind: gates})[kind]
        assert mixed.active is not None
        active = tuple(tuple(columns.index(o) for o in row) for row in mixed.active)
        alphas[kind], edge_weights[kind] = alpha, EdgeWeights(mixed.weight_EO[:, columns], active)
    logits = network(found["xt"].to(memory_format=torch.channels_last), edge_weights)
    torch.testing.assert_close(logits, given["logits"], **TOLERANCE)

    tau_now = relaxation.model_copy(update={"tau_start": given["tau"]})
    ours = {kind: alpha[:, columns] for kind, alpha in alphas.items()}
    value = PathDepth()(
        F.cross_entropy(logits, found["yt"]),
        PenaltyInputs(space, ours, edge_weights, tau_now, Progress(0, 10), {}),
    )
    torch.testing.assert_close(value, given["loss"], **TOLERANCE)
    gradients = torch.autograd.grad(value, list(alphas.values()))
    for gradient, wanted in zip(gradients, given["grad_alpha"], strict=True):
        torch.testing.assert_close(gradient, wanted, **TOLERANCE)


@pytest.mark.slow
def test_recorded_genotypes() -> None:
    for file, name in (
        ("darts_small_a1", "darts"),
        ("pcdarts_small_a1", "darts"),
        ("rnn_small", "recurrent"),
        ("prdarts_small", "darts"),
    ):
        found, space = recorded(file), find_space(name)
        probabilities = [alpha.softmax(-1) for alpha in found["alphas"][: len(space.cells)]]
        if file == "pcdarts_small_a1":
            betas = [
                torch.cat([beta[into].softmax(0) for into in space.entering]) for beta in found["alphas"][2:]
            ]
            probabilities = [p * beta[:, None] for p, beta in zip(probabilities, betas, strict=True)]
        wanted = found["genotype"]
        if file == "prdarts_small":
            called = [
                op.replace("dua_sepc", "sep_conv").replace("dil_sepc", "dil_conv") for op in found["space"]
            ]
            probabilities = [p[:, [called.index(op) for op in space.operations]] for p in probabilities]
            found_edges = re.findall(
                r"\('(\w+)', (\d), np",
                str(wanted).replace("dua_sepc", "sep_conv").replace("dil_sepc", "dil_conv"),
            )
            wanted = [(op, int(source)) for op, source in found_edges]
        ours = derive_genotype(
            space,
            dict(zip(space.cells, probabilities, strict=True)),
            "pairs_repeat" if file == "prdarts_small" else "edges",
        )
        edges = [edge for kind in space.cells for node in ours.cells[kind].nodes for edge in node]
        if file == "prdarts_small":
            assert edges == wanted
        else:
            assert str(edges)[1:-1] in wanted.replace("], normal_concat=range(2, 6), reduce=[", ", ")


def test_pairs_take_an_edge_once() -> None:
    space = find_space("darts")
    weights = torch.full((14, 8), 0.01)
    weights[0, 4], weights[0, 5], weights[1, 4] = 0.5, 0.4, 0.3
    cells = {kind: weights for kind in space.cells}
    assert derive_genotype(space, cells, "pairs_repeat").cells["normal"].nodes[0] == (
        ("sep_conv_3x3", 0),
        ("sep_conv_5x5", 0),
    )
    assert derive_genotype(space, cells, "pairs").cells["normal"].nodes[0] == (
        ("sep_conv_3x3", 0),
        ("sep_conv_3x3", 1),
    )


def test_none_is_kept_in_nasbench201_only() -> None:
    none_is_strongest = torch.tensor([0.9, 0.1, 0.0, 0.0, 0.0])
    cell = derive_genotype(find_space("nasbench201"), {"cell": none_is_strongest.expand(6, 5)}).cells["cell"]
    assert {name for node in cell.nodes for name, _ in node} == {"none"}
    recurrent = derive_genotype(
        find_space("recurrent"), {"recurrent": none_is_strongest.expand(36, 5)}
    ).cells["recurrent"]
    assert recurrent.nodes == ((("tanh", 0),),) * 8


def test_exponentiated_gradient_by_hand() -> None:
    theta = torch.tensor([[0.5, 0.3, 0.2], [0.98, 0.019, 0.001]], dtype=torch.double)
    gradient = torch.tensor([[1.0, -2.0, 0.0], [0.0, 0.0, 60.0]], dtype=torch.double)
    raw = torch.tensor(
        [[0.5 * 2.718281828459045**-0.1, 0.3 * 2.718281828459045**0.2, 0.2], [0.98, 0.019, 1e-5]],
        dtype=torch.double,
    )
    torch.testing.assert_close(exponentiated_gradient(theta, gradient, 0.1), raw / raw.sum(1, keepdim=True))


def test_gaea_keeps_operations_and_the_edges_of_each_node_on_simplices() -> None:
    space, method = find_space("darts"), GaeaPcDarts()
    alphas = method.start(space, 0, torch.device("cpu"))
    optimizer = method.optimizer(space, alphas)
    generator = torch.Generator().manual_seed(0)
    before = alphas.edges["normal"].detach().clone()
    for parameter in alphas.all():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()
    torch.testing.assert_close(alphas.operations["reduce"].sum(1), torch.ones(14))
    for into in space.entering:
        torch.testing.assert_close(alphas.edges["normal"][into].sum(), torch.tensor(1.0))
        grad = alphas.edges["normal"].grad
        assert grad is not None
        torch.testing.assert_close(
            alphas.edges["normal"][into], exponentiated_gradient(before[into], grad[into], 0.1)
        )
    # The released code has a floor for operations and none for edges.
    for parameter in alphas.all():
        parameter.grad = torch.zeros_like(parameter)
        parameter.grad[..., 0] = 300.0
    optimizer.step()
    assert alphas.operations["normal"][:, 0].min() > 9e-6
    assert 0 < alphas.edges["normal"][0] < 1e-12


def test_gdas_draws_by_probability_and_anneals() -> None:
    alpha = torch.log(torch.tensor([[0.1, 0.2, 0.3, 0.4, 1e-9]]))
    allowed_EO, draws = torch.ones(1, 5, dtype=torch.bool), torch.Generator().manual_seed(0)
    progress = Progress(0, 250)
    drawn = {str(n): GumbelHard().mix(alpha, allowed_EO, progress, draws) for n in range(4000)}
    active = [found.active for found in read_active(drawn).values()]
    share = [sum(run == ((o,),) for run in active) / 4000 for o in range(5)]
    assert share == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.0], abs=0.03)
    assert [Progress(epoch, 250).between(10, 0.1) for epoch in (0, 249)] == pytest.approx([10, 0.1])


def penalty_inputs(
    alphas: dict[str, Tensor], inputs: Progress, costs: dict[str, Tensor] | None = None
) -> PenaltyInputs:
    edge_weights = {kind: EdgeWeights(alpha.softmax(-1)) for kind, alpha in alphas.items()}
    return PenaltyInputs(find_space("nasbench201"), alphas, edge_weights, Softmax(), inputs, costs or {})


def test_penalties_by_hand() -> None:
    alphas = {"cell": torch.randn(6, 5, generator=torch.Generator().manual_seed(0))}
    loss = torch.tensor(2.0)
    mean = alphas["cell"].exp().sum(1).log().mean()
    torch.testing.assert_close(BetaDecay()(loss, penalty_inputs(alphas, Progress(10, 100))), loss + 5 * mean)
    theta = alphas["cell"].softmax(-1)
    torch.testing.assert_close(
        Entropy(gamma=0.5)(loss, penalty_inputs(alphas, Progress(0, 1))),
        loss + 0.5 * (theta * (theta * 5).log()).sum(),
    )
    costs = {"cell": torch.rand(6, 5, generator=torch.Generator().manual_seed(1)) * 1e6}
    total = (theta * costs["cell"]).sum()
    inputs = penalty_inputs(alphas, Progress(0, 1), costs)
    torch.testing.assert_close(
        CostPenalty(ref=2_000_000)(loss, inputs), 0.2 * loss * (total.log() / torch.tensor(2e6).log()) ** 0.3
    )
    torch.testing.assert_close(
        CostPenalty(ref=2_000_000, form="add")(loss, inputs), loss + 0.1 * (total - 2e6) / 2e6
    )
    torch.testing.assert_close(CostPenalty(form="fbnet")(loss, inputs), 0.2 * loss * total.log() ** 0.6)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"name": "gaea", "penalties": [{"name": "beta_decay"}]}, "no meaning on a simplex"),
        ({"name": "darts", "relaxation": {"name": "simplex"}}, "need each other"),
        ({"name": "darts", "penalties": [{"name": "path_depth"}]}, "needs the gates"),
        ({"name": "gaea", "level": "single", "order": "second"}, "needs level bilevel"),
        ({"name": "gdas", "order": "second"}, "samples"),
        ({"name": "darts", "penalties": [{"name": "entropy"}]}, "take beta_decay"),
    ],
)
def test_combinations_without_meaning_are_refused(values: dict[str, object], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        TypeAdapter(MethodConfig).validate_python(values)


def test_combinations_with_meaning_are_not() -> None:
    for method in (
        PcDarts(penalties=(BetaDecay(), CostPenalty())),
        Gaea(level="single"),
        Gdas(penalties=(CostPenalty(),)),
        PrDarts(penalties=(PathDepth(), BetaDecay())),
        BetaDarts(order="exact", auxiliary_skip=AuxiliarySkip()),
    ):
        assert isinstance(method, Method)


def test_the_auxiliary_skip_fades() -> None:
    assert [AuxiliarySkip().weight(Progress(epoch, 50)) for epoch in (0, 25, 49)] == pytest.approx(
        [1, 0.5, 0.02]
    )
    assert AuxiliarySkip(decay="cosine").weight(Progress(25, 50)) == pytest.approx(0.5)
