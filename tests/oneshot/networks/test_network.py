"""The search networks compute what the published codes compute: recorded logits, losses, gradients and
statistics, to 1e-9."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference import darts_names, nasbench201_names, recorded, theirs
from torch import Tensor, nn

from oneshot.axes.edge_weights import EdgeWeights, read_active
from oneshot.axes.relaxation import GumbelHard
from oneshot.networks.parallel_edges import EdgeSettings
from oneshot.networks.search import LARGE, DartsNetwork, NasBench201Network, stem_for
from oneshot.spaces.cells import CellSpace, find_space

TOLERANCE = {"rtol": 1e-9, "atol": 1e-12}
Loaded = tuple[dict[str, Any], nn.Module, dict[str, list[str]]]


def load(file: str) -> Loaded:
    found = recorded(file)
    if found["kind"] == "nb201":
        space = find_space("nasbench201")
        network: nn.Module = NasBench201Network(space, found["C"], found["N"])
        names = nasbench201_names(network, space)
    else:
        space = find_space("darts")
        settings = EdgeSettings(partial=4 if found["kind"] == "pcdarts" else 1)
        network = DartsNetwork(space, found["C"], found["layers"], settings=settings)
        names = darts_names(network, space)
    network = network.double().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    missing = network.load_state_dict(theirs(names, found["state_dict"]), strict=False)
    assert not missing.unexpected_keys and all("num_batches" in name for name in missing.missing_keys)
    return found, network, names


def edge_weights(space: CellSpace, alphas: list[Tensor]) -> dict[str, EdgeWeights]:
    """Softmax over operations and, where there are betas, over the edges into each node."""
    edges = [
        torch.cat([beta[into].softmax(0) for into in space.entering]) for beta in alphas[len(space.cells) :]
    ]
    return {
        kind: EdgeWeights(alpha.softmax(-1), edge_E=edges[number] if edges else None)
        for number, (kind, alpha) in enumerate(zip(space.cells, alphas, strict=False))
    }


@pytest.mark.slow
@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("file", ["darts_small_a1", "pcdarts_small_a1", "nb201_small_track0"])
def test_recorded_logits_gradients_and_statistics(file: str, create_graph: bool) -> None:
    found, network, names = load(file)
    space = find_space("nasbench201" if found["kind"] == "nb201" else "darts")
    alphas = [alpha.clone().requires_grad_() for alpha in found["alphas"]]
    x = found["xt"].to(memory_format=torch.channels_last)
    logits = network(x, edge_weights(space, alphas), create_graph)
    torch.testing.assert_close(logits, found["logits_train"], **TOLERANCE)
    weights = dict(network.named_parameters())
    loss = F.cross_entropy(logits, found["yt"])
    torch.testing.assert_close(loss, found["loss_train"], **TOLERANCE)
    architecture_optimizer = torch.autograd.grad(loss, [*alphas, *weights.values()])
    for ours, wanted in zip(architecture_optimizer, found["grad_alpha_train"], strict=False):
        torch.testing.assert_close(ours, wanted, **TOLERANCE)
    wanted_of = theirs(names, found["grad_w_train"])
    for (name, _), ours in zip(weights.items(), architecture_optimizer[len(alphas) :], strict=True):
        torch.testing.assert_close(ours, wanted_of[name], **TOLERANCE)
    network.eval()
    torch.testing.assert_close(
        network(x, edge_weights(space, alphas)), found["logits_eval_after_one_train_fwd"], **TOLERANCE
    )


def test_one_pass_of_gdas_with_given_noise() -> None:
    found, network, _ = load("nb201_small_track0")
    given = found["gdas"]
    alpha = found["alphas"][0].clone().requires_grad_()
    drawn = {"cell": GumbelHard().given(alpha, given["gumbels"], given["tau"])}
    logits = network(found["xt"].to(memory_format=torch.channels_last), read_active(drawn))
    torch.testing.assert_close(logits, given["logits"], **TOLERANCE)
    loss = F.cross_entropy(logits, found["yt"])
    (gradient,) = torch.autograd.grad(loss, alpha)
    torch.testing.assert_close(gradient, given["grad_alpha"][0], **TOLERANCE)


def test_large_images_get_the_stem_of_pc_darts_on_imagenet() -> None:
    # Its search network at 224 pixels: 3 C / 2 and 3 C channels; the first cell reads maps of 56 and 28.
    assert [stem_for(size) for size in (32, LARGE - 1, LARGE, 224)] == ["cifar", "cifar", *["imagenet"] * 2]
    torch.manual_seed(0)
    space = find_space("darts")
    network = DartsNetwork(space, 2, 3, 5, stem="imagenet").double()
    convolutions = [m for m in [*network.stem, *(network.second or [])] if isinstance(m, nn.Conv2d)]
    assert [(conv.out_channels, conv.stride) for conv in convolutions] == [(3, (2, 2)), *[(6, (2, 2))] * 2]
    x = torch.randn(2, 3, 100, 100, dtype=torch.double)
    # The same in torch's own words: no ReLU between the stem's second output and the first cell's own.
    plain = x
    maps = []
    for number, conv in enumerate(convolutions):
        rectified = F.relu(plain) if number else plain
        plain = F.batch_norm(F.conv2d(rectified, conv.weight, None, 2, 1), None, None, training=True)
        maps.append(plain)
    seen: list[Tensor] = []
    network.cells[0].register_forward_pre_hook(lambda _, inputs: seen.extend(inputs[:2]))
    alphas = [torch.zeros(14, 8, dtype=torch.double) for _ in range(2)]
    # 100 pixels become 13, 7 and 4: odd sides are halved, too.
    assert network(x, edge_weights(space, alphas)).shape == (2, 5)
    torch.testing.assert_close(seen, [F.relu(maps[1]), F.relu(maps[2])], **TOLERANCE)
