"""Latency tables of chains of blocks, for `oneshot.search --target 15ms`."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from engine.blocks.latency_table import LatencyTable, Noise
from engine.blocks.layers import LayerSpec, layer_name
from engine.config import read_yaml
from engine.errors import UserError, shortened
from engine.seed import numpy_generator
from oneshot.chains.costs import latency_costs
from oneshot.chains.genotype import ChainGenotype
from oneshot.chains.layers import ImageShape, chain_specs, distinct_specs
from oneshot.chains.space import ChainSpace, load_chain_space, packaged_chain_spaces
from predictors.latency.kit import OVERHEAD, KitSubject, write_kit
from predictors.latency.timings import Timings, tabulate

POOL = 20  # times as many random chains as are timed, to spread these over their MACs


def chain_space_named(name: str | None) -> ChainSpace | None:
    """The space of chains that `--space` names; None if it names none or a space of a supernet."""
    if name is None:
        return None
    if Path(name).is_file():
        stages = read_yaml(Path(name)).get("stages")
        # Stages of a supernet have depths instead.
        first = stages[0] if isinstance(stages, list) and stages else None
        return load_chain_space(name) if isinstance(first, dict) and "layers" in first else None
    return load_chain_space(name) if name in packaged_chain_spaces() else None


def timed_layers(space: ChainSpace, images: Sequence[ImageShape]) -> dict[str, LayerSpec]:
    """What is timed by itself, by its name as an item."""
    found = {}
    for image in images:
        for layer in distinct_specs(space, image):
            found[layer_name(layer)] = layer
    return found


def timed_chains(space: ChainSpace, images: Sequence[ImageShape], count: int) -> dict[str, list[LayerSpec]]:
    """At most `count` random chains, spread evenly over their MACs, on images of all sizes in turn."""
    rng = numpy_generator(0, "whole chains")  # the same when an interrupted command continues
    drawn = []
    for _ in range(POOL * count):
        operations = [str(rng.choice(layer.operations)) for layer in space.layers]
        drawn.append(tuple(operations))
    macs = [_macs(space, operations, images[0]) for operations in drawn]
    order = np.argsort(macs, kind="stable")
    found = {}
    for number, place in enumerate(np.linspace(0, len(order) - 1, count).round().astype(int)):
        image = images[number % len(images)]
        operations = drawn[order[place]]
        name = f"net-{space.codes_of(operations, image.size).hex()}"
        found[name] = chain_specs(space, operations, image)
    return found


def _macs(space: ChainSpace, operations: tuple[str, ...], image: ImageShape) -> int:
    macs, _ = ChainGenotype(space=space, layers=operations).cost(image)
    return macs


def export_chain_kit(
    space: ChainSpace,
    images: Sequence[ImageShape],
    whole: int,
    folder: Path,
    advance: Callable[[str], None],
) -> None:
    """Write what is timed, and the scripts that time it.

    Args:
        space: of the chains.
        images: what they are built for, one for each resolution.
        whole: chains to time as a whole.
        folder: where to write.
        advance: is called with the name of each structure that is written.
    """
    image = images[0]
    subject = KitSubject(space.name, space.bn_eps, image.classes, image.channels)
    layers = list(timed_layers(space, images).values())
    write_kit(subject, layers, timed_chains(space, images, whole), folder, advance)


def build_chain_table(
    timings: Timings, device: str, space: ChainSpace, images: Sequence[ImageShape]
) -> tuple[LatencyTable, dict[str, Noise]]:
    """The latency table of a device from the timings of a kit, and the noise of each kind of items.

    Raises:
        UserError: the timings are of other items than this space has, or of none.
    """
    layers = timed_layers(space, images)
    for name in timings.ms:
        chain = None
        if name.startswith("net-"):
            chain = space.chain_of_codes(bytes.fromhex(name.removeprefix("net-")))
        if chain is None and name not in layers and name != OVERHEAD:
            raise UserError(
                f"The timings have items that space '{space.name}' does not have, such as {shortened(name)}; "
                "name the space, classes, channels and resolutions that the kit was made for."
            )
    found = tabulate(timings, layers)
    if not found.blocks:
        raise UserError(f"The timings hold no blocks of space '{space.name}'.")
    table = LatencyTable(
        device=device,
        runtime=timings.runtime,
        machine=timings.machine,
        threads=timings.threads,
        clock=timings.clock,
        space=space.name,
        fingerprint=space.fingerprint,
        classes=images[0].classes,
        channels=images[0].channels,
        resolutions=tuple(sorted(image.size for image in images)),
        noise=found.noise,
        blocks=found.blocks,
        networks=found.networks,
    )
    return table, found.noises


def error_of_sums(table: LatencyTable, space: ChainSpace, image: ImageShape) -> float | None:
    """The median relative error of the costs that a search reads, on the chains that were timed whole."""
    errors = []
    for network in table.networks:
        found = space.chain_of_codes(bytes.fromhex(network.codes))
        assert found is not None
        operations, size = found
        costs = latency_costs(space, image._replace(size=size), table, table.device)
        errors.append(abs(costs.total(space, operations) / network.ms - 1))
    return float(np.median(errors)) if errors else None
