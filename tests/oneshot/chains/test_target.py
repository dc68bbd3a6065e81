"""A target: read, reached, and the choice near it exact."""

from itertools import product

import numpy as np
import pytest
import torch
from chains import small_chain

from engine.blocks.latency_table import LatencyTable, Noise, TimedNetwork
from engine.blocks.layers import cost_of_layer, structure
from engine.errors import UserError
from oneshot.chains.best_choice import best_choice
from oneshot.chains.costs import costs_of, latency_costs
from oneshot.chains.genotype import ChainGenotype
from oneshot.chains.layers import ImageShape, distinct_specs
from oneshot.chains.target import CostTarget, Target, parse_target

IMAGE, CPU = ImageShape(8, 1, 10), torch.device("cpu")


@pytest.mark.parametrize(
    ("text", "target", "said"),
    [
        ("15ms", Target("latency", 15.0), "15 ms"),
        ("0.25 ms", Target("latency", 0.25), "0.25 ms"),
        ("100M", Target("macs", 1e8), "100M MACs"),
        ("1.5G macs", Target("macs", 1.5e9), "1.5G MACs"),
        ("4M params", Target("params", 4e6), "4M parameters"),
    ],
)
def test_targets_are_read(text: str, target: Target, said: str) -> None:
    assert parse_target(text) == target and str(target) == said


@pytest.mark.parametrize("text", ["", "fast", "ms", "-3ms", "0ms", "0", "15 ms params", "nanms"])
def test_what_is_no_target_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="target"):
        parse_target(text)


def test_the_choice_is_the_best_of_all() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        log_p = np.log(rng.dirichlet(np.ones(4), 5))
        log_p[rng.random((5, 4)) < 0.2] = -np.inf
        log_p[:, 0] = -1.0
        cost = rng.integers(0, 1000, (5, 4)).astype(float)
        high = float(rng.integers(800, 3000))
        low = 0.8 * high
        best = -np.inf
        for columns in product(range(4), repeat=5):
            rows = np.arange(5), list(columns)
            if low <= cost[rows].sum() <= high:
                best = max(best, log_p[rows].sum())
        found = np.arange(5), best_choice(log_p, cost, low, high)
        total = cost[found].sum()
        assert total <= high or not np.isfinite(best)
        if np.isfinite(best) and total < high - 5:  # not at the edge, where costs are rounded up
            assert log_p[found].sum() == pytest.approx(best, abs=0.2)
            assert low <= total


def test_out_of_reach_is_refused_with_the_range() -> None:
    space = small_chain()
    costs = costs_of(space, IMAGE, "macs")
    with pytest.raises(UserError, match=r"small_chain costs 1M MACs; --target can be .*k MACs to"):
        CostTarget(space, costs, Target("macs", 1e6), 10, CPU)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.85])
@pytest.mark.parametrize("pull", [-1.0, 1.0])
def test_the_factor_finds_the_target_against_any_loss(share: float, pull: float) -> None:
    """A loss that wants the cheapest or the most expensive chain, and Adam as searches use it."""
    space = small_chain()
    costs = costs_of(space, IMAGE, "macs")
    cost_EO = torch.tensor(costs.layers_EO)
    allowed_EO = space.allowed_mask("chain")
    least = costs.constant + cost_EO.masked_fill(~allowed_EO, torch.inf).amin(1).sum()
    most = costs.constant + cost_EO.masked_fill(~allowed_EO, -torch.inf).amax(1).sum()
    aimed = float(least + share * (most - least))
    target = CostTarget(space, costs, Target("macs", aimed), 300, CPU)
    alpha_EO = torch.zeros(allowed_EO.shape, requires_grad=True)
    adam = torch.optim.Adam([alpha_EO], 0.02, (0.5, 0.999))
    for _ in range(300):
        probability_EO = alpha_EO.masked_fill(~allowed_EO, -torch.inf).softmax(-1)
        distance = target.distance(probability_EO)
        loss = pull * (probability_EO * cost_EO).sum() / aimed + target.factor(distance) * distance
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        target.follow(distance)
        adam.step()
    chain, report = target.read_off(alpha_EO.masked_fill(~allowed_EO, -torch.inf).softmax(-1))
    assert report.expected == pytest.approx(aimed, rel=0.05)
    assert chain.cost(IMAGE)[0] == pytest.approx(report.found)
    assert report.found <= aimed * (1 + 1e-6)


def test_a_latency_table_is_corrected_by_whole_chains() -> None:
    space = small_chain()
    blocks: dict[str, dict[int, float]] = {}
    for layer in distinct_specs(space, IMAGE):
        blocks.setdefault(structure(layer), {})[layer.size] = cost_of_layer(layer)[0] / 1e5 + 0.01
    table = LatencyTable(
        device="here",
        runtime="none",
        threads=1,
        clock="cpu",
        space=space.name,
        fingerprint=space.fingerprint,
        classes=10,
        channels=1,
        resolutions=(8,),
        noise=Noise(rounds=2, reliability=1.0, relative=0.0),
        blocks=blocks,
    )
    plain = latency_costs(space, IMAGE, table, "table")
    networks, chains = [], []
    rng = np.random.default_rng(0)
    for _ in range(12):
        layers = tuple(str(rng.choice(layer.operations)) for layer in space.layers)
        codes = space.codes_of(layers, 8).hex()
        networks.append(TimedNetwork(codes=codes, ms=1.5 * plain.total(space, layers) + 0.1))
        chains.append(ChainGenotype(space=space, layers=layers))
    whole = table.model_copy(update={"networks": tuple(networks)})
    costs = latency_costs(space, IMAGE, whole, "table")
    for network, chain in zip(networks, chains, strict=True):
        assert costs.total(space, chain.layers) == pytest.approx(network.ms)
    # Another space's chains do not correct this one, but its blocks are known.
    other = space.model_copy(update={"bn_eps": 0.1})
    assert other.fingerprint == space.fingerprint
    strange = whole.model_copy(update={"fingerprint": "other"})
    assert latency_costs(space, IMAGE, strange, "table").constant == plain.constant
    with pytest.raises(UserError, match="does not know stem-3-8-s1-relu on a map of 8 pixels; measure with"):
        latency_costs(space, IMAGE._replace(channels=3), table, "table")
    with pytest.raises(UserError, match="on a map of 32 pixels; measure with"):
        latency_costs(space, IMAGE._replace(size=32), table, "table")
