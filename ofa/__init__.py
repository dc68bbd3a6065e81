"""Stage 1: one weight-sharing supernet, which holds a subnet for every budget.

`python -m ofa.train` does all of it. The same as a library, in a training loop of your own:

    import torch
    import ofa

    space = ofa.load_space("digits")
    supernet = ofa.Supernet(space, classes=10, channels=1)
    optimizer = torch.optim.SGD(supernet.parameters(), lr=0.1, momentum=0.9)

    for step, (images, labels) in enumerate(batches):
        optimizer.zero_grad()
        losses = ofa.sandwich_step(supernet, images, labels, step)
        optimizer.step()

    arch = ofa.smallest(space)
    macs, params = supernet.cost(arch)
    subnet = ofa.calibrate(ofa.extract(supernet, arch), batches)
    accuracy = ofa.subnet_accuracy(subnet, validation_batches)

`batches` are pairs of images (N, channels, side, side) and labels (N,); each architecture resizes the images
to its own resolution. `subnet` is an ordinary torch module for images of `arch.resolution` pixels a side.
`ofa.TrainedSupernet` opens the folder of a finished run.
"""

from typing import TYPE_CHECKING

from engine.command.start import start
from engine.lazy import lazy_names

if TYPE_CHECKING:
    from engine.compute.precision import training_in
    from ofa.calibration import calibrate, subnet_accuracy
    from ofa.cost import cost_of, costs_of
    from ofa.initialisation import initialise
    from ofa.space.arch import Arch, largest, smallest
    from ofa.space.codes import decode, encode, sample, sample_codes
    from ofa.space.space import Space, load_space
    from ofa.subnet import Subnet, extract
    from ofa.supernet import Supernet
    from ofa.trained import TrainedSupernet
    from ofa.training.sampling import build_sampler
    from ofa.training.sandwich import Sandwich, Seeds, sandwich_step
    from ofa.training.tuning import single_network, tune_step
    from ofa.weights.modules import from_module

__all__ = [
    "Arch",
    "Sandwich",
    "Seeds",
    "Space",
    "Subnet",
    "Supernet",
    "TrainedSupernet",
    "build_sampler",
    "calibrate",
    "cost_of",
    "costs_of",
    "decode",
    "encode",
    "extract",
    "from_module",
    "initialise",
    "largest",
    "load_space",
    "sample",
    "sample_codes",
    "sandwich_step",
    "single_network",
    "smallest",
    "subnet_accuracy",
    "training_in",
    "tune_step",
]

# A name is imported when it is first used: `import ofa` itself costs milliseconds, not torch.
__getattr__ = lazy_names(
    __name__,
    {
        "Arch": "ofa.space.arch",
        "Sandwich": "ofa.training.sandwich",
        "Seeds": "ofa.training.sandwich",
        "Space": "ofa.space.space",
        "Subnet": "ofa.subnet",
        "Supernet": "ofa.supernet",
        "TrainedSupernet": "ofa.trained",
        "build_sampler": "ofa.training.sampling",
        "calibrate": "ofa.calibration",
        "cost_of": "ofa.cost",
        "costs_of": "ofa.cost",
        "decode": "ofa.space.codes",
        "encode": "ofa.space.codes",
        "extract": "ofa.subnet",
        "from_module": "ofa.weights.modules",
        "initialise": "ofa.initialisation",
        "largest": "ofa.space.arch",
        "load_space": "ofa.space.space",
        "sample": "ofa.space.codes",
        "sample_codes": "ofa.space.codes",
        "sandwich_step": "ofa.training.sandwich",
        "single_network": "ofa.training.tuning",
        "smallest": "ofa.space.arch",
        "subnet_accuracy": "ofa.calibration",
        "training_in": "engine.compute.precision",
        "tune_step": "ofa.training.tuning",
    },
)

# Before `python -m ofa.train` imports torch, so that help and a quiet Ctrl-C need not wait for that.
start()


def __dir__() -> list[str]:
    return __all__
