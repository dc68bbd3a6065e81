"""The recurrent networks against the reference code, the fast operation against the definition, and the exported step."""

import ast
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from engine.seed import torch_generator
from oneshot.genotype import Cell
from oneshot.mixture import Mixture
from oneshot.recurrent import (
    NO_MASKS,
    SPACE,
    CellNetwork,
    Dropout,
    Masks,
    RecurrentNetwork,
    draw_masks,
    language_loss,
    step_module,
    text_loss,
)

RATES = Dropout(output=0.5, hidden=0.3, inputs=0.5, embedding=0.2, words=0.2)


@pytest.fixture(scope="module")
def reference(nas_data: Path) -> dict[str, Any]:
    path = nas_data.parent / "reference" / "search" / "rnn_small.pt"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return torch.load(path, weights_only=True)


def ours(name: str) -> str:
    """The name of a reference weight in our network."""
    fixed = {"encoder.weight": "embedding_VH", "decoder.weight": "embedding_VH", "decoder.bias": "bias_V", "rnns.0._W0": "first_2HD"}
    return fixed.get(name) or name.replace("rnns.0._Ws.", "nodes.").replace("rnns.0.bn.", "")


def loaded(network: Any, state: dict[str, Tensor]) -> Any:
    network = network.double()
    network.load_state_dict({ours(name): value for name, value in state.items() if "num_batches" not in name})
    return network


def search_network(words: int = 50, hidden: int = 12, **more: Any) -> RecurrentNetwork:
    return RecurrentNetwork(words, hidden, torch.Generator().manual_seed(0), **more).double()


def window(reference: dict[str, Any], split: str) -> tuple[Tensor, Tensor]:
    return reference[f"x{split}"], reference[f"y{split}"].view(reference["T"], reference["B"])


def loss_of(
    network: RecurrentNetwork, parameters: dict[str, Tensor], alpha: Tensor, data: dict[str, Any], split: str, slowness: float = 0
) -> Tensor:
    def call(tokens: Tensor, hidden: Tensor, mixtures: dict[str, Mixture], masks: Masks) -> Any:
        return functional_call(network, parameters, (tokens, hidden, mixtures, masks))

    mixtures = {"recurrent": Mixture(alpha.softmax(-1))}
    return language_loss(call, window(data, split), data["h"][0], mixtures, NO_MASKS, slowness)[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("twice", [False, True])
def test_outputs_and_gradients_are_the_references(reference: dict[str, Any], twice: bool) -> None:
    network = loaded(search_network(differentiable_twice=twice), reference["state_dict"])
    alpha = reference["alphas"][0].clone().requires_grad_()
    x, y = window(reference, "t")
    read = network(x, reference["h"][0], {"recurrent": Mixture(alpha.softmax(-1))})
    torch.testing.assert_close(read.logits_TBV.log_softmax(-1), reference["log_prob"], rtol=1e-9, atol=0)
    torch.testing.assert_close(read.hidden_1BH, reference["h_next"], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(text_loss(read, y), reference["loss"], rtol=1e-12, atol=0)
    torch.testing.assert_close(text_loss(read, y, 1e-3) - text_loss(read, y), reference["slowness"], rtol=1e-9, atol=1e-14)

    parameters = dict(network.named_parameters())
    grad, *grads = torch.autograd.grad(text_loss(read, y, 1e-3), [alpha, *parameters.values()])
    torch.testing.assert_close(grad, reference["grad_alpha_train"][0], rtol=1e-9, atol=1e-15)
    wanted = {ours(name): value for name, value in reference["grad_w_train"].items()}
    for name, value in zip(parameters, grads, strict=True):
        assert value.sum().item() == pytest.approx(wanted[name][0], rel=1e-9, abs=1e-13)
        assert value.norm().item() == pytest.approx(wanted[name][1], rel=1e-9)

    first = torch.autograd.grad(loss_of(network, parameters, alpha, reference, "v"), alpha)
    torch.testing.assert_close(first[0], reference["grad_alpha_first"][0], rtol=1e-9, atol=1e-15)


def clipped(grads: list[Tensor], most: float) -> tuple[list[Tensor], Tensor]:
    factor = (most / (torch.stack([g.norm() for g in grads]).norm() + 1e-6)).clamp(max=1)
    return [g * factor for g in grads], factor


def test_second_order_gradient_is_the_references(reference: dict[str, Any]) -> None:
    """The reference clips both gradients, carries the factor of the first along, and does not step the tied matrix."""
    network = loaded(search_network(), reference["state_dict"])
    alpha = reference["alphas"][0].clone().requires_grad_()
    weights = dict(network.named_parameters())
    eta, decay, clip = reference["eta"], reference["wdecay"], reference["clip"]
    grads = torch.autograd.grad(loss_of(network, weights, alpha, reference, "t"), list(weights.values()))
    steps, factor = clipped(list(grads), clip)
    moved = {
        name: (w if name == "embedding_VH" else w - eta * (step + decay * w)).detach().requires_grad_()
        for (name, w), step in zip(weights.items(), steps, strict=True)
    }
    grad, *direction = torch.autograd.grad(loss_of(network, moved, alpha, reference, "v"), [alpha, *moved.values()])
    direction, _ = clipped(direction, clip)
    epsilon = 0.01 / torch.cat([v.flatten() for v in direction]).norm()

    def beside(sign: float) -> Tensor:
        near = {name: (w + sign * epsilon * v).detach() for (name, w), v in zip(weights.items(), direction, strict=True)}
        return torch.autograd.grad(loss_of(network, near, alpha, reference, "t"), alpha)[0]

    second = grad - eta * factor * (beside(1) - beside(-1)) / (2 * epsilon)
    torch.testing.assert_close(second, reference["grad_alpha_second"][0], rtol=1e-9, atol=1e-9 * float(second.abs().max()))


def cell_of(written: str) -> Cell:
    """The reference's `Genotype(recurrent=[...], concat=range(1, 9))`."""
    call = ast.parse(written, mode="eval").body
    assert isinstance(call, ast.Call)
    recurrent, concat = (keyword.value for keyword in call.keywords)
    output = range(*(ast.literal_eval(a) for a in concat.args)) if isinstance(concat, ast.Call) else ast.literal_eval(concat)
    return Cell(nodes=tuple(((name, source),) for name, source in ast.literal_eval(recurrent)), output=tuple(output))


@pytest.mark.parametrize("name", ["DARTS_V1", "DARTS_V2", "ENAS"])
def test_networks_of_published_cells_are_the_references(reference: dict[str, Any], name: str) -> None:
    wanted = reference[f"eval_{name}"]
    network = loaded(CellNetwork(reference["V"], reference["H"], cell_of(wanted["genotype"])), wanted["state_dict"])
    x, y = window(reference, "t")
    read = network(x, reference["h"][0])
    torch.testing.assert_close(read.logits_TBV.log_softmax(-1), wanted["log_prob"], rtol=1e-9, atol=0)
    torch.testing.assert_close(text_loss(read, y), wanted["loss"], rtol=1e-12, atol=0)
    assert sum(p.numel() for p in network.parameters()) == wanted["params"]
