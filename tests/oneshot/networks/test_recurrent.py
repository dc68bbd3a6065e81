"""The recurrent networks against the reference code, the fast operation against the definition, and the
exported step."""

import ast
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor

from engine.seed import torch_generator
from oneshot.axes.edge_weights import EdgeWeights
from oneshot.bilevel import BilevelProblem, VirtualStep, exact, second_order
from oneshot.networks.dropout import NO_MASKS, Dropout, Masks
from oneshot.networks.language_loss import LanguageLoss, TextBatch, slowness, text_loss
from oneshot.networks.recurrent import SPACE, CellNetwork, RecurrentNetwork, draw_masks, step_module
from oneshot.spaces.genotype import Cell

RATES = Dropout(output=0.5, hidden=0.3, inputs=0.5, embedding=0.2, words=0.2)


@pytest.fixture(scope="module")
def reference(nas_data: Path) -> dict[str, Any]:
    path = nas_data.parent / "reference" / "search" / "rnn_small.pt"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return torch.load(path, weights_only=True)


def ours(name: str) -> str:
    """The name of a reference weight in our network."""
    fixed = {
        "encoder.weight": "embedding_VH",
        "decoder.weight": "embedding_VH",
        "decoder.bias": "bias_V",
        "rnns.0._W0": "first_2HD",
    }
    return fixed.get(name) or name.replace("rnns.0._Ws.", "nodes.").replace("rnns.0.bn.", "")


def loaded(network: Any, state: dict[str, Tensor]) -> Any:
    network = network.double()
    network.load_state_dict({ours(name): value for name, value in state.items() if "num_batches" not in name})
    return network


def search_network(words: int = 50, hidden: int = 12) -> RecurrentNetwork:
    return RecurrentNetwork(words, hidden, torch.Generator().manual_seed(0)).double()


def weights_of(alpha: Tensor, fast: bool = True) -> dict[str, EdgeWeights]:
    """An offset of nothing asks for the definition instead of the fast operation."""
    return {
        "recurrent": EdgeWeights(alpha.softmax(-1), offset_E=None if fast else alpha.new_zeros(len(alpha)))
    }


def window(reference: dict[str, Any], split: str) -> tuple[Tensor, Tensor]:
    return reference[f"x{split}"], reference[f"y{split}"].view(reference["T"], reference["B"])


def loss_of(
    network: RecurrentNetwork,
    parameters: dict[str, Tensor],
    alpha: Tensor,
    data: dict[str, Any],
    split: str,
    penalty: float = 0,
) -> Tensor:
    batch = TextBatch(*window(data, split), data["h"][0], penalty=penalty)
    return LanguageLoss(network)(batch, weights_of(alpha), parameters)


def problem(
    network: RecurrentNetwork, alpha: Tensor, train: TextBatch, valid: TextBatch, step: VirtualStep
) -> BilevelProblem:
    return BilevelProblem(
        network=network,
        loss=LanguageLoss(network),
        edge_weights=lambda: weights_of(alpha),
        penalised=lambda value, _: value,
        alphas=[alpha],
        train=train,
        valid=valid,
        step=step,
    )


@pytest.mark.parametrize("fast", [True, False])
def test_outputs_and_gradients_are_the_references(reference: dict[str, Any], fast: bool) -> None:
    network = loaded(search_network(), reference["state_dict"])
    alpha = reference["alphas"][0].clone().requires_grad_()
    x, y = window(reference, "t")
    read = network(x, reference["h"][0], weights_of(alpha, fast))
    torch.testing.assert_close(read.logits_TBV.log_softmax(-1), reference["log_prob"], rtol=1e-9, atol=0)
    torch.testing.assert_close(read.hidden_1BH, reference["h_next"], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(text_loss(read, y), reference["loss"], rtol=1e-12, atol=0)
    torch.testing.assert_close(1e-3 * slowness(read), reference["slowness"], rtol=1e-9, atol=0)

    parameters = dict(network.named_parameters())
    grad, *grads = torch.autograd.grad(
        text_loss(read, y) + 1e-3 * slowness(read), [alpha, *parameters.values()]
    )
    torch.testing.assert_close(grad, reference["grad_alpha_train"][0], rtol=1e-9, atol=1e-15)
    wanted = {ours(name): value for name, value in reference["grad_w_train"].items()}
    for name, value in zip(parameters, grads, strict=True):
        assert value.sum().item() == pytest.approx(wanted[name][0], rel=1e-9, abs=1e-13)
        assert value.norm().item() == pytest.approx(wanted[name][1], rel=1e-9)

    first = torch.autograd.grad(loss_of(network, parameters, alpha, reference, "v"), alpha)
    torch.testing.assert_close(first[0], reference["grad_alpha_first"][0], rtol=1e-9, atol=1e-15)


def test_second_order_gradient_is_the_references(reference: dict[str, Any]) -> None:
    """The reference clips both gradients, carries the factor of the first along, and does not step the tied
    matrix."""
    network = loaded(search_network(), reference["state_dict"])
    alpha = reference["alphas"][0].clone().requires_grad_()
    train, valid = (TextBatch(*window(reference, split), reference["h"][0]) for split in "tv")
    none: list[Tensor | None] = [None] * len(list(network.parameters()))
    still = frozenset({"embedding_VH"})
    step = VirtualStep(
        reference["eta"], 0.0, reference["wdecay"], none, reference["clip"], clip_direction=True, still=still
    )
    _, (second,) = second_order(problem(network, alpha, train, valid, step))
    torch.testing.assert_close(
        second, reference["grad_alpha_second"][0], rtol=1e-9, atol=1e-9 * float(second.abs().max())
    )


def test_second_order_with_clipping_is_nearly_exact_where_it_is_flat(reference: dict[str, Any]) -> None:
    network = loaded(search_network(), reference["state_dict"])
    alpha = reference["alphas"][0].clone().requires_grad_()
    train, valid = (TextBatch(*window(reference, split), reference["h"][0]) for split in "tv")
    none: list[Tensor | None] = [None] * len(list(network.parameters()))
    step = VirtualStep(1.0, 0.0, reference["wdecay"], none, reference["clip"])
    clipped = problem(network, alpha, train, valid, step)
    (ours,), (wanted,) = second_order(clipped)[1], exact(clipped)[1]
    assert (
        float((ours - wanted).norm() / wanted.norm()) < 0.1
    )  # the derivative of the clipping factor is left out
    unscaled = VirtualStep(1.0, 0.0, reference["wdecay"], none, reference["clip"], clip_direction=True)
    (published,) = second_order(clipped._replace(step=unscaled))[1]
    assert float((published - wanted).norm() / wanted.norm()) > 0.1


def cell_of(written: str) -> Cell:
    """The reference's `Genotype(recurrent=[...], concat=range(1, 9))`."""
    call = ast.parse(written, mode="eval").body
    assert isinstance(call, ast.Call)
    recurrent, concat = (keyword.value for keyword in call.keywords)
    output = (
        range(*(ast.literal_eval(a) for a in concat.args))
        if isinstance(concat, ast.Call)
        else ast.literal_eval(concat)
    )
    return Cell(
        nodes=tuple(((name, source),) for name, source in ast.literal_eval(recurrent)), output=tuple(output)
    )


@pytest.mark.parametrize("name", ["DARTS_V1", "DARTS_V2", "ENAS"])
def test_networks_of_published_cells_are_the_references(reference: dict[str, Any], name: str) -> None:
    wanted = reference[f"eval_{name}"]
    network = loaded(
        CellNetwork(reference["V"], reference["H"], cell_of(wanted["genotype"])), wanted["state_dict"]
    )
    x, y = window(reference, "t")
    read = network(x, reference["h"][0])
    torch.testing.assert_close(read.logits_TBV.log_softmax(-1), wanted["log_prob"], rtol=1e-9, atol=0)
    torch.testing.assert_close(text_loss(read, y), wanted["loss"], rtol=1e-12, atol=0)
    assert sum(p.numel() for p in network.parameters()) == wanted["params"]


def random_case(batch: int = 3) -> tuple[RecurrentNetwork, Tensor, Tensor, Tensor, Masks]:
    network = search_network(20, 6)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(20, (2, 5, batch), generator=generator)
    hidden = torch.randn(1, batch, 6, generator=generator, dtype=torch.float64).requires_grad_()
    alpha = torch.randn(
        len(SPACE.edges), len(SPACE.operations), generator=generator, dtype=torch.float64
    ).requires_grad_()
    return network, tokens, hidden, alpha, draw_masks(RATES, network, batch, generator)


def test_the_fast_operation_is_the_definition() -> None:
    results = []
    for fast in (False, True):
        network, (x, y), hidden, alpha, masks = random_case()
        cell_weights = weights_of(alpha, fast)["recurrent"]._replace(
            edge_E=torch.linspace(0.5, 1.5, len(alpha), dtype=torch.float64)
        )
        read = network(x, hidden, {"recurrent": cell_weights}, masks)
        loss = text_loss(read, y) + 0.1 * slowness(read) + read.hidden_1BH.square().sum()
        grads = torch.autograd.grad(loss, [alpha, hidden, *network.parameters()])
        results.append([loss, *grads, network.running_mean, network.running_var])
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-12)


def test_gradients_have_gradients() -> None:
    """The fast operation, whose input hidden state depends on alpha too: what the definition gives, and
    finite differences."""
    network, (x, y), hidden, alpha, masks = random_case()
    parameters = list(network.parameters())

    def size(alpha: Tensor, fast: bool = True, create_graph: bool = False) -> Tensor:
        start = network(y, hidden, weights_of(alpha, fast), masks).hidden_1BH
        loss = text_loss(network(x, start, weights_of(alpha, fast), masks), y)
        grads = torch.autograd.grad(loss, parameters, create_graph=create_graph)
        return torch.stack([(g * g).sum() for g in grads]).sum()

    (second,) = torch.autograd.grad(size(alpha, create_graph=True), alpha)
    (wanted,) = torch.autograd.grad(size(alpha, fast=False, create_graph=True), alpha)
    torch.testing.assert_close(second, wanted, rtol=1e-9, atol=1e-12)
    step = torch.zeros_like(alpha)
    step[7, 2] = 1e-5
    assert float(size(alpha + step) - size(alpha - step)) / 2e-5 == pytest.approx(
        float(second[7, 2]), rel=1e-5
    )


def test_a_sampled_architecture_runs_alone() -> None:
    """One edge a node: equal to the network of that cell but for BatchNorm, and no other matrix row or weight
    has a gradient."""
    network, (x, y), hidden, _, masks = random_case()
    names = ("tanh", "relu", "sigmoid", "identity")
    cell = Cell(nodes=tuple(((names[n % 4], n // 2),) for n in range(8)), output=tuple(range(1, 9)))
    weight, active = (
        torch.zeros(len(SPACE.edges), len(SPACE.operations), dtype=torch.float64),
        [()] * len(SPACE.edges),
    )
    for node, ((name, source),) in enumerate(cell.nodes):
        edge, operation = SPACE.entering[node].start + source, SPACE.operations.index(name)
        weight[edge, operation], active[edge] = 1, (operation,)
    weight.requires_grad_()
    read = network(x, hidden, {"recurrent": EdgeWeights(weight, tuple(active))}, masks)
    (grad,) = torch.autograd.grad(text_loss(read, y), weight)
    assert torch.equal(grad != 0, weight != 0)
    whole = search_network(20, 6)(x, hidden, {"recurrent": EdgeWeights(weight)}, masks)
    torch.testing.assert_close(read.logits_TBV, whole.logits_TBV, rtol=1e-9, atol=1e-12)

    found = CellNetwork(20, 6, cell).double()
    found.load_state_dict({n: p for n, p in network.named_parameters()})
    network.eval()
    network.running_var.fill_(1 - 1e-5)  # with mean 0 it changes nothing
    network.running_mean.zero_()
    read = network(x, hidden, {"recurrent": EdgeWeights(weight, tuple(active))}, masks)
    torch.testing.assert_close(read.logits_TBV, found(x, hidden, masks).logits_TBV, rtol=1e-9, atol=1e-12)


def test_offsets_and_skips_enter_every_node() -> None:
    network, (x, y), hidden, alpha, masks = random_case()
    plain = network(x, hidden, weights_of(alpha), masks)
    offset = torch.zeros(len(SPACE.edges), dtype=torch.float64).requires_grad_()
    skip = torch.tensor(0.0, dtype=torch.float64).requires_grad_()
    read = network(
        x, hidden, {"recurrent": EdgeWeights(alpha.softmax(-1), offset_E=offset, skip=skip)}, masks
    )
    torch.testing.assert_close(read.logits_TBV, plain.logits_TBV, rtol=1e-12, atol=0)
    for grad in torch.autograd.grad(text_loss(read, y), [offset, skip]):
        assert bool(grad.isfinite().all())
    identity = torch.zeros_like(alpha)
    identity[:, SPACE.operations.index("none")] = 1
    copied = network(x, hidden, {"recurrent": EdgeWeights(identity, skip=torch.tensor(1.0))})
    assert bool(copied.logits_TBV.isfinite().all())


def test_masks_are_drawn_by_the_generator_and_keep_the_mean() -> None:
    network = search_network(2000, 200)
    masks, again = (draw_masks(RATES, network, 64, torch_generator("cpu", 0, "masks", 3)) for _ in range(2))
    for mask, same, rate in zip(masks, again, (0.5, 0.3, 0.5, 0.2, 0.2), strict=True):
        assert mask is not None and same is not None and torch.equal(mask, same)
        assert mask.unique().tolist() == pytest.approx([0, 1 / (1 - rate)])
        assert float(mask.mean()) == pytest.approx(1, abs=0.05)
    assert (
        draw_masks(Dropout(output=0, hidden=0, inputs=0, embedding=0), network, 2, torch.Generator())
        == NO_MASKS
    )


def test_masks_are_shared_by_forwards_unless_they_are_to_be_drawn_in_each() -> None:
    network, (x, y), hidden, alpha, masks = random_case()
    loss, generator = LanguageLoss(network), torch.Generator().manual_seed(0)
    shared = TextBatch(x, y, hidden, masks, penalty=0.1)
    assert loss(shared, weights_of(alpha)) == loss(
        shared, weights_of(alpha), dict(network.named_parameters())
    )
    wanted = network(x, hidden, weights_of(alpha), masks)
    assert loss(shared, weights_of(alpha)) == text_loss(wanted, y) + 0.1 * slowness(wanted)
    assert (
        shared.after is not None
        and not shared.after.requires_grad
        and torch.equal(shared.after, wanted.hidden_1BH)
    )
    fresh = TextBatch(x, y, hidden, lambda: draw_masks(RATES, network, 3, generator))
    assert loss(fresh, weights_of(alpha)) != loss(fresh, weights_of(alpha))


def test_a_dropped_word_is_dropped_wherever_it_occurs() -> None:
    network = search_network(20, 6)
    mask = torch.ones(20, 1, dtype=torch.float64)
    mask[3] = 0
    embedded = network.embed(torch.tensor([[3, 4], [5, 3]]), Masks(words_V1=mask))
    assert embedded.abs().sum(-1).ne(0).tolist() == [[False, True], [True, False]]


@pytest.mark.slow
def test_the_exported_step_is_the_network(tmp_path: Path) -> None:
    cell = Cell(
        nodes=((("tanh", 0),), (("relu", 1),), (("sigmoid", 1),), (("identity", 2),)), output=(1, 2, 3, 4)
    )
    network = CellNetwork(30, 16, cell, torch.Generator().manual_seed(0))
    torch.nn.init.normal_(network.embedding_VH, generator=torch.Generator().manual_seed(1))
    step, path = step_module(network), tmp_path / "step.onnx"
    batch = torch.export.Dim("batch", min=1, max=1024)
    example = (torch.zeros(1, 2, dtype=torch.int64), network.start(2))
    torch.onnx.export(
        step, example, path, input_names=["tokens", "hidden"], output_names=["logits", "next"],
        dynamic_shapes=({1: batch}, {1: torch.export.Dim.AUTO}), opset_version=18, dynamo=True, verbose=False,
    )  # fmt: skip
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    tokens = torch.randint(30, (20, 3), generator=torch.Generator().manual_seed(2))
    hidden, whole = network.start(3).numpy(), network(tokens, network.start(3))
    for row, wanted in zip(tokens.numpy(), whole.logits_TBV.detach().numpy(), strict=True):
        logits, hidden = session.run(["logits", "next"], {"tokens": row[None], "hidden": hidden})
        np.testing.assert_allclose(logits[0], wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(hidden, whole.hidden_1BH.detach().numpy(), rtol=1e-4, atol=1e-5)
