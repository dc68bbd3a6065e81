"""supernet(x, arch) is pure in arch, equals the extracted module, and starts as BigNAS says."""

import copy
import re

import numpy as np
import pytest
import torch
from counting import count_operations
from supernets import filled

from engine.blocks.elastic import DropConnect, drop_connect, dropout
from engine.compute.macs import count_parameters
from engine.data.digits import Digits
from engine.data.sources import load_data
from engine.errors import UserError
from ofa.calibration import calibrate, prepare, subnet_accuracy
from ofa.space.arch import largest, smallest
from ofa.space.codes import sample
from ofa.space.space import Space, load_space
from ofa.subnet import Subnet, extract
from ofa.supernet import Regularisation, Supernet


@pytest.mark.parametrize("name", ["attentive_nas", "ofa_mbv3", "bignas", "ofa_proxyless", "ofa_resnet50"])
def test_extract_equals_the_supernet_of_a_published_space(name: str) -> None:
    space = load_space(name)
    net, arch = filled(space, classes=3), smallest(space)
    x = torch.randn(2, 3, arch.resolution, arch.resolution)
    with torch.no_grad():
        torch.testing.assert_close(extract(net, arch)(x), net(x, arch), rtol=1e-5, atol=1e-5)


def test_what_runs_depends_on_the_architecture_alone(tiny: Space) -> None:
    net, rng, x = filled(tiny), np.random.default_rng(0), torch.randn(4, 3, 8, 8)
    before = copy.deepcopy(net.state_dict())
    a, b = sample(tiny, rng), sample(tiny, rng)
    with torch.no_grad():
        alone, _, again = net(x, a), net(x, b), net(x, a)
    assert torch.equal(alone, again)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items()), (
        "a forward pass changed the supernet"
    )


def test_a_subnet_owns_just_what_it_uses(tiny: Space) -> None:
    net = filled(tiny)
    subnet = extract(net, smallest(tiny))
    shared = {t.untyped_storage().data_ptr() for t in net.state_dict().values()}
    for tensor in subnet.state_dict().values():
        assert tensor.untyped_storage().data_ptr() not in shared
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    assert count_parameters(subnet) < count_parameters(net)


def test_an_architecture_of_another_space_is_refused(tiny: Space) -> None:
    with pytest.raises(UserError, match="is not in space 'tiny'"):
        extract(filled(tiny), smallest(tiny).model_copy(update={"resolution": 10}))


def test_residual_blocks_start_as_their_shortcut() -> None:
    net = Supernet(load_space("attentive_nas"), 2)
    gammas = [block.project.bn.weight for stage in net.stages for block in stage]  # type: ignore[union-attr]
    assert all((g == 0).all() for g in gammas)
    plain = Supernet(load_space("bignas"), 2)
    for stage in plain.stages:
        first, *later = [block.project.bn.weight for block in stage]  # type: ignore[union-attr]
        assert (first == 1).all()
        assert all((g == 0).all() for g in later)


def test_gradients_reach_only_the_slice_in_use(tiny: Space) -> None:
    net = filled(tiny)
    net(torch.randn(4, 3, 8, 8), smallest(tiny)).sum().backward()
    depthwise = net.stages[1][0].depthwise.conv  # type: ignore[index, union-attr]
    assert depthwise.weight.grad[:, :, 1:4, 1:4].abs().sum() > 0
    assert depthwise.weight.grad[:, :, 0].abs().sum() == 0, (
        "the rim of a 5 x 5 kernel learns from a 3 x 3 one"
    )


def test_regularisation_is_drawn_from_its_generator_and_scales(tiny: Space) -> None:
    x = torch.ones(4000, 3, 2, 2)
    dropped = drop_connect(x, DropConnect(0.25, torch.Generator().manual_seed(0)))
    whole = dropped.flatten(1)
    assert ((whole == 0).all(1) | (whole == 1 / 0.75).all(1)).all(), "drop-connect drops whole images"
    assert float(dropped.mean()) == pytest.approx(1, abs=0.03)
    assert float(dropout(x, 0.25, torch.Generator().manual_seed(0)).mean()) == pytest.approx(1, abs=0.03)

    net, arch, image = filled(tiny), largest(tiny), torch.randn(8, 3, 8, 8)

    def run(seed: int, connect: float, first: int) -> torch.Tensor:
        with torch.no_grad():
            return net(image, arch, Regularisation(0.0, connect, first, torch.Generator().manual_seed(seed)))

    assert torch.equal(run(0, 0.5, 0), run(0, 0.5, 0))
    assert not torch.equal(run(0, 0.5, 0), run(1, 0.5, 0))
    assert torch.equal(run(0, 0.5, 2), run(1, 0.5, 2)), "no stage is left to drop"


def test_drop_connect_grows_with_the_block_and_needs_an_identity_shortcut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    space = load_space("digits")
    rates = []
    monkeypatch.setattr(
        "engine.blocks.kinds.inverted.drop_connect", lambda x, drop: rates.append(drop.rate) or x
    )
    filled(space)(torch.randn(2, 3, 16, 16), largest(space), Regularisation(0.0, 0.4, 0, torch.Generator()))
    # 8 blocks; blocks 2 and 5 carry a stride, block 0 is 16 -> 16 at stride 1 but has rate 0
    assert rates == pytest.approx([0.4 * i / 8 for i in (1, 3, 4, 6, 7)])


def test_calibration_is_exact_however_the_images_are_split(tiny: Space) -> None:
    subnet = extract(filled(tiny), largest(tiny))
    x = torch.randn(60, 3, 12, 12) * 3 + 1
    y = torch.zeros(60)
    calibrate(subnet, [(x[:37], y), (x[37:52], y), (x[52:], y)])
    stem = subnet.stem.conv(x).detach()
    torch.testing.assert_close(subnet.stem.bn.running_mean, stem.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(subnet.stem.bn.running_var, stem.var((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert not subnet.training
    assert subnet.stem.bn.momentum == 0.1


def test_calibration_adds_few_operations_to_a_batch_however_many_layers(tiny: Space) -> None:
    """A GPU takes longer to launch a dozen for each BatchNorm than to run the network."""
    subnet, x = extract(filled(tiny), largest(tiny)), torch.randn(4, 3, 12, 12)
    assert sum(isinstance(module, torch.nn.BatchNorm2d) for module in subnet.modules()) > 10
    taken = []
    for count in (1, 2):
        batches = [(x, torch.zeros(4))] * count
        taken.append(count_operations(lambda batches=batches: calibrate(subnet, batches)))
    with torch.no_grad():
        network = count_operations(lambda: subnet.train()(x))
    assert taken[1] - taken[0] - network <= 20


def test_one_batch_gives_every_layer_that_batchs_statistics(tiny: Space) -> None:
    subnet, x = extract(filled(tiny), largest(tiny)), torch.randn(50, 3, 12, 12)
    with torch.no_grad():
        wanted = subnet.train()(x)
        calibrate(subnet, [(x, torch.zeros(50))])
        torch.testing.assert_close(
            subnet(x), wanted, rtol=1e-2, atol=1e-2
        )  # biased in training, unbiased stored


def test_accuracy_counts_hits() -> None:
    space = load_space("digits")
    data = load_data(Digits(), torch.device("cpu"), 0)
    subnet = prepare(Supernet(space, 10, 1), smallest(space), data, 100)
    logits = []
    labels = []
    for x, y in data.batches("val", 77):
        logits.append(subnet(x).argmax(1))
        labels.append(y)
    assert subnet_accuracy(subnet, data.batches("val", 50)) == pytest.approx(
        float((torch.cat(logits) == torch.cat(labels)).double().mean())
    )


def test_subnet_trains_as_an_ordinary_module(tiny: Space) -> None:
    subnet = Subnet(tiny, largest(tiny), 2)
    subnet(torch.randn(4, 3, 12, 12)).sum().backward()
    assert all(p.grad is not None for p in subnet.parameters())


@pytest.mark.parametrize(
    ("field", "position", "value", "said"),
    [
        ("width", 3, 999, r"width\[3\] = 999 is not in space 'digits'; its choices are 16, 24, 32, 48"),
        ("kernel", 1, 7, r"kernel\[1\] = 7 is not in space 'digits'; its choices are 3, 5"),
        ("expand", 2, 2.5, r"expand\[2\] = 2.5 is not in space 'digits'; its choices are 2.0, 3.0, 4.0"),
        ("depth", 0, 3, r"depth\[0\] = 3 is not in space 'digits'; its choices are 1, 2"),
    ],
)
def test_an_impossible_choice_is_refused_before_anything_is_computed(
    field: str, position: int, value: float, said: str
) -> None:
    space = load_space("digits")
    net, arch = Supernet(space, 10, 1), largest(space)
    entries = list(getattr(arch, field))
    entries[position] = value
    wrong = arch.model_copy(update={field: tuple(entries)})
    with pytest.raises(UserError, match=said):
        net(torch.zeros(2, 1, 16, 16), wrong)
    with pytest.raises(
        UserError, match="resolution = 13 is not in space 'digits'; its choices are 8, 12, 16"
    ):
        net(torch.zeros(2, 1, 16, 16), arch.model_copy(update={"resolution": 13}))
    with pytest.raises(UserError, match="kernel has 4 entries, but space 'digits' has 3"):
        net(torch.zeros(2, 1, 16, 16), arch.model_copy(update={"kernel": (5, 5, 5, 5)}))


@pytest.mark.parametrize("shape", [(1, 16, 16), (2, 3, 16, 16), (2, 1, 16, 12), (2, 1, 16)], ids=str)
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    space = load_space("digits")
    said = f"Images have shape {shape}, but this supernet takes square ones of 1 channels"
    with pytest.raises(ValueError, match=re.escape(said)):
        Supernet(space, 10, 1)(torch.zeros(shape), smallest(space))
