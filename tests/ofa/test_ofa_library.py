"""`import ofa` as a library: cheap to import, and its docstring's example trains, extracts and measures."""

import re
import subprocess
import sys
import textwrap

import pytest
import torch

import ofa
from engine.data.digits import Digits
from engine.data.sources import load_data
from ofa.training.sampling import MacsPrior, UniformSampler

HEAVY = ("torch", "numpy", "pydantic", "sklearn", "yaml", "rich")


def test_importing_it_imports_nothing_heavy() -> None:
    script = f"import sys, ofa; print([name for name in {HEAVY} if name in sys.modules], dir(ofa))"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert said.startswith("[] ['Arch', 'Sandwich'")


def test_every_name_is_there_and_no_other() -> None:
    for name in ofa.__all__:
        assert getattr(ofa, name).__name__ == name
    with pytest.raises(AttributeError, match="module 'ofa' has no attribute 'Supernets'"):
        _ = ofa.Supernets


@pytest.mark.slow
def test_submodules_do_not_hide_names() -> None:
    """A submodule that is imported becomes an attribute of the package: it must not be called like a name."""
    script = (
        "import ofa.train, ofa.evaluate, ofa.convert, ofa.calibration, ofa.subnet, ofa.cost, ofa;"
        "print([name for name in ofa.__all__ if not callable(getattr(ofa, name))])"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert said == "[]\n"


@pytest.mark.slow
def test_the_example_of_the_docstring_runs() -> None:
    (example,) = re.findall(r"loop of your own:\n\n(.*?)\n\n`batches`", ofa.__doc__ or "", re.DOTALL)
    data = load_data(Digits(), torch.device("cpu"), 0)
    names = {
        "batches": list(data.train_batches(64, 0))[:4],
        "validation_batches": list(data.batches("val", 64)),
    }
    torch.manual_seed(0)
    exec(compile(textwrap.dedent(example), "example", "exec"), names)
    assert 0 <= names["accuracy"] <= 1
    assert names["losses"].shape == (4,)
    assert names["macs"] > names["params"] > 0
    assert names["subnet"](torch.zeros(1, 1, 8, 8)).shape == (1, 10)


@pytest.mark.slow
def test_a_loop_of_ones_own_learns(tiny: ofa.Space) -> None:
    data = load_data(Digits(), torch.device("cpu"), 0)
    torch.manual_seed(0)
    supernet = ofa.Supernet(tiny, classes=10, channels=1)
    optimizer = torch.optim.Adam(supernet.parameters(), lr=0.01)
    config, step = ofa.Sandwich(dropout=0, drop_connect=0), 0
    for epoch in range(6):
        for images, labels in data.train_batches(64, epoch):
            optimizer.zero_grad()
            ofa.sandwich_step(supernet, images, labels, step, config)
            optimizer.step()
            step += 1
    for arch, at_least in ((ofa.smallest(tiny), 0.2), (ofa.largest(tiny), 0.4)):  # by chance: 0.1
        subnet = ofa.calibrate(ofa.extract(supernet, arch), data.batches("train", 64))
        assert ofa.subnet_accuracy(subnet, data.batches("val", 64)) > at_least


def test_a_step_draws_by_its_number_and_its_seeds(tiny: ofa.Space) -> None:
    torch.manual_seed(0)
    supernet, x, y = ofa.Supernet(tiny, 5), torch.randn(4, 3, 12, 12), torch.arange(4)

    def losses(step: int, **settings: object) -> torch.Tensor:
        return ofa.sandwich_step(supernet, x, y, step, **settings)  # type: ignore[arg-type]

    assert torch.equal(losses(3), losses(3, sampler=UniformSampler(tiny), seeds=ofa.Seeds(0, 0)))
    assert not torch.equal(losses(3), losses(4))
    assert not torch.equal(losses(3)[0], losses(3, seeds=ofa.Seeds(noise=1))[0])


def test_a_sampling_with_tables_needs_its_sampler(tiny: ofa.Space) -> None:
    supernet, x, y = ofa.Supernet(tiny, 5), torch.randn(4, 3, 12, 12), torch.arange(4)
    config = ofa.Sandwich(sampling=MacsPrior(samples=1000))
    with pytest.raises(ValueError, match=r"Sampling 'macs_prior' has tables .* build_sampler"):
        ofa.sandwich_step(supernet, x, y, 0, config)
    sampler = ofa.build_sampler(config.sampling, tiny, classes=5, channels=3)
    assert ofa.sandwich_step(supernet, x, y, 0, config, sampler).shape == (4,)


def test_calibration_without_images_is_refused(tiny: ofa.Space) -> None:
    subnet = ofa.extract(ofa.Supernet(tiny, 5), ofa.smallest(tiny))
    with pytest.raises(ValueError, match="at least one batch"):
        ofa.calibrate(subnet, [])
