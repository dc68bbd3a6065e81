"""Draws come from the distributions they say, inside the MACs they say, and depend on the generator only."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, chi2_contingency, chisquare

from engine.checkpoint import load_weights
from engine.config import validate
from engine.errors import UserError
from engine.run import read_lines
from engine.seed import numpy_generator
from ofa.cost import cost_of, costs_of
from ofa.space.arch import Arch, largest, single_arch_space, smallest
from ofa.space.codes import canonical, decode, encode, sample, sample_codes
from ofa.space.space import Space, load_space
from ofa.training.sampling import (
    Attentive,
    AttentiveSampler,
    MacsPrior,
    Predicted,
    Prior,
    Sampling,
    Uniform,
    build_sampler,
    fit_accuracy,
)
from ofa.training.sandwich import Sandwich

MILLION = 10**6


def nobody(archs: list[Arch]) -> list[float]:
    raise AssertionError("this sampler has no use for a judge")


def flat(archs: list[Arch]) -> list[float]:
    return [0.0] * len(archs)


def macs_of(space: Space, archs: list[Arch]) -> np.ndarray:
    return costs_of(space, np.stack([encode(space, a) for a in archs]), 1000, 3).macs


def same(one: np.ndarray, other: np.ndarray) -> float:
    """p-value of two histograms having one distribution, the rare values of both taken together."""
    table = np.stack([one, other])
    rare = table.sum(0) < 20
    table = (
        np.column_stack([table[:, ~rare], table[:, rare].sum(1)]) if table[:, rare].any() else table[:, ~rare]
    )
    return float(chi2_contingency(table).pvalue)


@pytest.fixture(scope="module")
def attentive_nas() -> Space:
    return load_space("attentive_nas")


@pytest.fixture(scope="module")
def prior(attentive_nas: Space) -> Prior:
    return Prior(MacsPrior(), attentive_nas, 1000, 3)


def test_uniform_is_the_uniform_sample(tiny: Space) -> None:
    drawn = build_sampler(Uniform(), tiny, 10, 1).draw(numpy_generator(0, "x"), 3, nobody)
    rng = numpy_generator(0, "x")
    assert drawn == [sample(tiny, rng) for _ in range(3)]


def test_bins_of_the_published_space(prior: Prior, attentive_nas: Space) -> None:
    assert (prior.bins.low, prior.bins.high) == tuple(
        cost_of(attentive_nas, a, 1000, 3)[0] for a in (smallest(attentive_nas), largest(attentive_nas))
    )
    assert prior.bins.number == 69, "bins of about 25M, all alike"
    assert prior.hits_B.sum() == MILLION
    assert prior.share_B == pytest.approx(prior.hits_B / MILLION)


def test_conditionals_are_those_of_other_uniform_samples(prior: Prior, attentive_nas: Space) -> None:
    """Fresh uniform samples of a bin against p(choice | bin), for each choice of three bins."""
    codes = sample_codes(attentive_nas, 200_000, np.random.default_rng(1))
    bins = prior.bins.of(costs_of(attentive_nas, codes, 1000, 3).macs)
    values = []
    for b in (5, 15, 35):
        inside = codes[bins == prior.bin_B[b]]
        assert len(inside) > 1000
        for i, choices in enumerate(attentive_nas.cardinalities):
            if choices > 1:
                p = np.diff(prior.cumulative_BFV[b, i, : choices - 1].astype(float), prepend=0, append=1)
                values.append(same(np.bincount(inside[:, i], minlength=choices + 1)[1:], p * prior.hits_B[b]))
    assert min(values) > 0.01 / len(values)


def test_draws_before_rejection_are_the_conditionals(prior: Prior, attentive_nas: Space) -> None:
    rng = np.random.default_rng(0)
    b = 20
    place = rng.random((50_000, len(attentive_nas.columns)), np.float32)
    codes = 1 + (place[..., None] >= prior.cumulative_BFV[b]).sum(2)
    known = prior.known_NF[prior.start_B[b] :][: prior.hits_B[b]]
    for i, choices in enumerate(attentive_nas.cardinalities):
        drawn, wanted = (np.bincount(c[:, i], minlength=choices + 1)[1:] for c in (codes, known))
        if choices > 1:
            assert same(drawn, wanted) > 1e-4


def test_draws_stay_in_their_bin_and_bins_are_as_often_as_they_should(
    prior: Prior, attentive_nas: Space
) -> None:
    codes = prior.draw(np.random.default_rng(0), 3000, 1)[:, 0]
    assert np.array_equal(codes, canonical(attentive_nas, codes))
    counts = np.bincount(prior.bins.of(prior.macs(codes)), minlength=prior.bins.number)[prior.bin_B]
    often = prior.share_B * 3000 >= 10
    seen, wanted = (
        np.append(counts[often], counts[~often].sum()),
        np.append(prior.share_B[often], prior.share_B[~often].sum()) * 3000,
    )
    assert chisquare(seen, wanted).pvalue > 1e-3
    again = prior.draw(np.random.default_rng(7), 40, 5)
    assert all(len(set(prior.bins.of(prior.macs(rows)))) == 1 for rows in again), (
        "candidates of a slot share its bin"
    )
    assert len(np.unique(codes, axis=0)) > 2990


def test_almost_every_draw_is_accepted_within_100_tries(prior: Prior) -> None:
    """Known samples stand in for the rest; almost none of 3,000 draws may be one of the million."""
    known = {row.tobytes() for row in prior.known_NF}
    drawn = prior.draw(np.random.default_rng(0), 3000, 1)[:, 0]
    assert sum(row.tobytes() in known for row in drawn) < 30


def test_uniform_over_bins(attentive_nas: Space) -> None:
    prior = Prior(
        MacsPrior(target="uniform", low=400_000_000, high=900_000_000, samples=300_000),
        attentive_nas,
        1000,
        3,
    )
    assert len(prior.bin_B) == 20
    bins = prior.bins.of(prior.macs(prior.draw(np.random.default_rng(0), 2000, 1)[:, 0]))
    assert chisquare(np.bincount(bins, minlength=20)).pvalue > 1e-3


def test_a_range_is_never_left(attentive_nas: Space) -> None:
    config = validate(MacsPrior, {"low": "200M", "high": "800M"}, "test")
    macs = macs_of(
        attentive_nas,
        build_sampler(config, attentive_nas, 1000, 3).draw(np.random.default_rng(0), 2000, nobody),
    )
    assert 200_000_000 <= macs.min() < 500_000_000
    assert 750_000_000 < macs.max() <= 800_000_000


def test_a_range_that_few_tries_hit_is_not_left_either(attentive_nas: Space) -> None:
    config = MacsPrior(low=600_000_000, high=600_200_000, bin=200_000, tries=2)
    prior = Prior(config, attentive_nas, 1000, 3)
    codes = prior.draw(np.random.default_rng(0), 200, 2).reshape(-1, len(attentive_nas.columns))
    assert {*prior.bins.of(prior.macs(codes))} == {0}
    assert len(np.unique(codes, axis=0)) > 50, "one of many known samples stands in, not always the same"


@pytest.mark.parametrize("name", ["digits", "ofa_mbv3"])
def test_other_spaces(name: str) -> None:
    """Below 25M in all; and choices per block, where blocks beyond the depth stay inactive."""
    space = load_space(name)
    prior = Prior(MacsPrior(samples=100_000), space, 10, 1)
    codes = prior.draw(np.random.default_rng(0), 300, 2).reshape(-1, len(space.columns))
    assert np.array_equal(codes, canonical(space, codes))
    bins = prior.bins.of(prior.macs(codes))
    assert np.isin(bins, prior.bin_B).all()
    assert len(set(bins.tolist())) > 3


def test_bins_cover_the_range_exactly(tiny: Space) -> None:
    for bin_width in (1000, 7777, 10**9, None):
        bins = Prior(MacsPrior(bin=bin_width, samples=1000), tiny, 10, 1).bins
        ends = np.array([bins.low - 1, bins.low, bins.high, bins.high + 1])
        assert bins.of(ends).tolist() == [-1, 0, bins.number - 1, -1]
        edges = np.arange(bins.low, bins.high + 1)
        assert np.unique(bins.of(edges)).tolist() == list(range(bins.number))
        assert all(b - a in (0, 1) for a, b in pairwise(bins.of(edges)))


def test_bins_that_nobody_hit_are_no_targets(tiny: Space) -> None:
    prior = Prior(MacsPrior(bin=500, samples=1000, target="uniform"), tiny, 10, 1)
    assert len(prior.bin_B) < prior.bins.number
    codes = prior.draw(np.random.default_rng(0), 500, 1)[:, 0]
    assert np.isin(prior.bins.of(prior.macs(codes)), prior.bin_B).all()


def test_a_space_of_one_architecture(tiny: Space) -> None:
    space = single_arch_space(tiny, smallest(tiny))
    for config in (MacsPrior(samples=10), Attentive(samples=10)):
        assert (
            build_sampler(config, space, 10, 1).draw(
                np.random.default_rng(0), 2, lambda archs: [0.0] * len(archs)
            )
            == [smallest(space)] * 2
        )


def test_no_random_subnets(tiny: Space) -> None:
    for config in (Uniform(), MacsPrior(samples=100), Attentive(samples=100)):
        assert build_sampler(config, tiny, 10, 1).draw(np.random.default_rng(0), 0, flat) == []


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"low": "5G"}, r"low = 5G leaves nothing of space 'digits'.* 86.6k to 3.83M MACs"),
        ({"high": "1k"}, "high = 1k leaves nothing"),
        ({"low": "2M", "high": "1M"}, "low = 2M and high = 1M leaves nothing"),
        ({"bin": 1}, "use a larger bin"),
        ({"bin": 0}, "'bin' = 0 is not valid"),
        ({"low": "many"}, "'many' is not a count"),
        ({"low": 3_800_000, "samples": 10}, "None of 10 sampled architectures"),
    ],
)
def test_a_bad_range_is_one_sentence(values: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        build_sampler(validate(MacsPrior, values, "test"), load_space("digits"), 1000, 3)


def measured(space: Space, path: Path, count: int = 60) -> Callable[[Arch], float]:
    """pairs.jsonl whose accuracy is additive in the choices; returns that accuracy."""

    def truth(arch: Arch) -> float:
        return (
            0.3 + 0.01 * arch.resolution + 0.02 * arch.depth[0] + 0.05 * arch.depth[1] + 0.001 * arch.width[3]
        )

    archs = [sample(space, rng) for rng in [np.random.default_rng(0)] for _ in range(count)]
    rows = [
        {"arch": a.model_dump(), "val_accuracy": truth(a), "macs": 1, "params": 1, "note": "more"}
        for a in archs
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return truth


def test_a_fitted_predictor_judges(tiny: Space, tmp_path: Path) -> None:
    truth = measured(tiny, tmp_path / "pairs.jsonl")
    for mode in ("bestup", "worstup"):
        values = {
            "mode": mode,
            "samples": 5000,
            "judge": {"name": "predicted", "pairs": tmp_path / "pairs.jsonl"},
        }
        sampler = build_sampler(validate(Attentive, values, "test"), tiny, 10, 1)
        assert isinstance(sampler, AttentiveSampler)
        drawn = sampler.draw(np.random.default_rng(3), 10, nobody)
        candidates = sampler.prior.draw(np.random.default_rng(3), 10, 50)
        assert candidates.shape[:2] == (10, 50)
        for arch, rows in zip(drawn, candidates, strict=True):
            values_K = sorted(truth(decode(tiny, row)) for row in rows)
            assert truth(arch) == pytest.approx(values_K[-1] if mode == "bestup" else values_K[0], abs=0.003)


def test_unusable_pairs_are_one_sentence(tiny: Space, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    with pytest.raises(UserError, match=r"has 0 measured subnets.*predictors\.collect"):
        fit_accuracy(path, tiny)
    measured(load_space("digits"), path)
    with pytest.raises(UserError, match=r"pairs\.jsonl' was measured on another space than 'tiny'"):
        fit_accuracy(path, tiny)
    path.write_text('{"arch": 3}\n' * 20)
    with pytest.raises(UserError, match="line 1"):
        fit_accuracy(path, tiny)
    with pytest.raises(UserError, match=r"'judge\.pairs' is missing"):
        validate(Attentive, {"judge": {"name": "predicted"}}, "test")


def test_best_and_worst_by_the_judge(tiny: Space) -> None:
    best, worst = (
        build_sampler(Attentive(mode=mode, samples=5000), tiny, 10, 1) for mode in ("bestup", "worstup")
    )

    def judge(archs: list[Arch]) -> list[float]:
        return [-float(arch.width[-1]) - arch.depth[1] / 10 for arch in archs]  # a wide head is good

    low, high = (macs_free(s.draw(np.random.default_rng(0), 200, judge)) for s in (worst, best))
    assert low < high


def macs_free(archs: list[Arch]) -> float:
    return float(np.mean([arch.width[-1] for arch in archs]))


def test_the_coin_is_fair_and_thrown_once_a_step(tiny: Space) -> None:
    sampler = build_sampler(Attentive(mode="coin", samples=5000), tiny, 10, 1)
    assert isinstance(sampler, AttentiveSampler)
    best = worst = 0
    for step in range(400):
        judged: list[Arch] = []

        def judge(archs: list[Arch], judged: list[Arch] = judged) -> list[float]:
            judged += archs
            return list(range(len(archs)))

        drawn = sampler.draw(numpy_generator(0, "subnets", step), 2, judge)
        best += drawn == [judged[0], judged[3]]
        worst += drawn == [judged[2], judged[5]] and drawn != [judged[0], judged[3]]
    assert best + worst == 400
    assert binomtest(best, 400).pvalue > 0.001


CONFIGS: list[Sampling] = [
    Uniform(),
    MacsPrior(samples=5000),
    Attentive(samples=5000),
    Attentive(samples=5000, mode="coin"),
]


@pytest.mark.parametrize("config", CONFIGS, ids=["uniform", "macs_prior", "bestup", "coin"])
def test_draws_depend_on_the_generator_only(tiny: Space, config: Sampling) -> None:
    """The same tables and draws each time, and the judge's verdict does not move the stream."""

    def steep(archs: list[Arch]) -> list[float]:
        return [-float(i) for i in range(len(archs))]

    one, two = (build_sampler(config, tiny, 10, 1) for _ in range(2))
    assert one.draw(np.random.default_rng(5), 2, flat) == two.draw(np.random.default_rng(5), 2, flat)
    rngs = [np.random.default_rng(5) for _ in range(2)]
    for rng, judge in zip(rngs, (flat, steep), strict=True):
        one.draw(rng, 2, judge)
    assert rngs[0].random() == rngs[1].random()
    assert one.draw(np.random.default_rng(5), 4, flat) != one.draw(np.random.default_rng(6), 4, flat)


SHORT = ("--epochs", "2", "--sandwich.sampling.samples", "5000")
PRIOR = ("--sandwich.sampling.name", "macs_prior")
ATTENTIVE = ("--sandwich.sampling.name", "attentive")
TRAININGS = {
    "prior": (*PRIOR, "--sandwich.sampling.low", "60k", "--sandwich.sampling.high", "200k"),
    "bestup": (*ATTENTIVE, "--sandwich.distillation.name", "alpha_divergence"),
    "worstup": (*ATTENTIVE, "--sandwich.sampling.mode", "worstup"),
    "predicted": (
        *ATTENTIVE,
        "--sandwich.sampling.mode",
        "coin",
        "--sandwich.sampling.judge.name",
        "predicted",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAININGS)
def test_training_with_each_sampler(
    train: Callable[..., int], tiny: Space, tmp_path: Path, name: str
) -> None:
    flags = TRAININGS[name]
    if name == "predicted":
        measured(tiny, tmp_path / "pairs.jsonl")
        flags = (*flags, "--sandwich.sampling.judge.pairs", str(tmp_path / "pairs.jsonl"))
    assert train(tmp_path / "run", *SHORT, *flags) == 0
    points = [p for p in read_lines(tmp_path / "run" / "metrics.jsonl") if "loss" in p]
    assert all(
        np.isfinite([p["loss"], *p["distillation"]]).all() and len(p["distillation"]) == 3 for p in points
    )
    assert points[-1]["loss"] < points[0]["loss"]


@pytest.mark.slow
def test_training_by_the_prior_is_repeatable_and_another_run_than_uniform(
    train: Callable[..., int], trained_run: Path, tmp_path: Path
) -> None:
    weights = []
    for out in ("one", "two"):
        assert train(tmp_path / out, *PRIOR, "--sandwich.sampling.samples", "5000") == 0
        weights.append(load_weights(tmp_path / out / "weights.safetensors"))
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    uniform = load_weights(trained_run / "weights.safetensors")
    assert not all(torch.equal(weights[0][k], uniform[k]) for k in uniform)


def test_a_bad_range_or_missing_pairs_leave_no_folder(train: Callable[..., int], tmp_path: Path) -> None:
    judge = (
        "--sandwich.sampling.judge.name",
        "predicted",
        "--sandwich.sampling.judge.pairs",
        str(tmp_path / "none.jsonl"),
    )
    for flags in ((*PRIOR, "--sandwich.sampling.low", "1G"), (*ATTENTIVE, *judge)):
        with pytest.raises(UserError):
            train(tmp_path / "run", *flags)
    assert not (tmp_path / "run").exists()


def test_one_architecture_alone_needs_no_sampler(train: Callable[..., int], tmp_path: Path) -> None:
    flags = (*PRIOR, "--sandwich.sampling.low", "1G", "--arch", "smallest", "--epochs", "1")
    assert train(tmp_path / "run", *flags) == 0


def test_defaults_are_bignas() -> None:
    config = Sandwich()
    assert (config.sampling, config.distillation.name) == (Uniform(), "soft_cross_entropy")
    assert Predicted.model_fields["candidates"].default == 50
    assert Attentive().judge.candidates == 3
