"""Which subnets a step trains beside the largest and the smallest.

They are drawn uniformly, by a prior over MACs, or as the best or worst of a few. BigNAS (2020,
arXiv:2003.11142) draws uniformly, and so mostly networks of middle size. AttentiveNAS (2021,
arXiv:2011.09011) draws a bin of MACs first, then candidates whose MACs lie in it, and trains the best
candidate (BestUp) or the worst (WorstUp). Candidates are drawn from p(choice | MACs bin), every choice on its
own, until one has MACs in the bin.

There are two differences from AttentiveNAS's code. The distributions are estimated here from a million
sampled and costed architectures, and not read from a file. And where every try misses the bin, one of those
samples is taken, and not the last try whatever it costs; so no draw leaves its bin.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from engine.command.progress import progress
from engine.config import Config, Count, Located, counted, format_count, validate
from engine.errors import UserError
from engine.run import read_lines
from engine.seed import numpy_generator
from ofa.cost import cost_of, costs_of
from ofa.space.arch import Arch, largest, smallest
from ofa.space.codes import Codes, canonical, decode, encode, sample, sample_codes, thermometer
from ofa.space.space import Space

BIN = 25_000_000  # MACs, as in AttentiveNAS
MOST_BINS = 1_000
CHUNK = 100_000  # architectures that are sampled at a time, so that a million need little memory
FEWEST_PAIRS = 10  # measured subnets

Judge = Callable[[list[Arch]], list[float]]  # the loss of each architecture on the step's batch


class Uniform(Config):
    """Every choice uniform and independent."""

    name: Literal["uniform"] = "uniform"


class _Prior(Config):
    low: Count | None = Field(
        None, description="fewest MACs of a drawn subnet, such as 200M; none: the smallest's"
    )
    high: Count | None = Field(
        None, description="most MACs of a drawn subnet, such as 800M; none: the largest's"
    )
    bin: Count | None = Field(
        None,
        ge=1,
        description=(
            "approximate MACs in a bin (all bins are equally wide); none: 25M, or a tenth of low..high if "
            "that is less"
        ),
    )
    target: Literal["sampled", "uniform"] = Field(
        "sampled",
        description=(
            "sampled: a bin is drawn as often as uniform samples fall into it (AttentiveNAS's code); "
            "uniform: all bins equally often"
        ),
    )
    tries: int = Field(
        100, ge=1, description="draws from p(choice | bin) before one of the samples in the bin is taken"
    )
    samples: int = Field(
        1_000_000,
        ge=1,
        description="architectures from which p(choice | bin) is estimated; a million take 1 to 3 s",
    )


class MacsPrior(_Prior):
    """A MACs bin first, then an architecture of it."""

    name: Literal["macs_prior"] = "macs_prior"


class BatchLoss(Config):
    """The label loss on the step's own batch, as in AttentiveNAS's code.

    It is taken with the batch's own statistics and without regularisation.
    """

    name: Literal["batch_loss"] = "batch_loss"
    candidates: int = Field(
        3,
        ge=1,
        description=(
            "architectures from which each random subnet is chosen; each costs a forward pass: with 3, a "
            "step of 2 random subnets takes 1.3 times as long"
        ),
    )


class Predicted(Config):
    """The accuracy that an additive predictor (Bayesian ridge) learned from measured subnets.

    It needs no forward passes.
    """

    name: Literal["predicted"] = "predicted"
    candidates: int = Field(50, ge=1, description="a random subnet is chosen from this many")
    pairs: Located = Field(description="pairs.jsonl of an earlier run on this space, from predictors.collect")


class Attentive(_Prior):
    """The best or the worst of several architectures of a MACs bin (AttentiveNAS)."""

    name: Literal["attentive"] = "attentive"
    mode: Literal["bestup", "worstup", "coin"] = Field(
        "bestup",
        description=(
            "bestup trains the best candidate and worstup the worst; coin: one of the two in each step, "
            "with even odds"
        ),
    )
    judge: Annotated[Predicted | BatchLoss, Field(discriminator="name")] = BatchLoss()


# --help shows the last one as the default.
Sampling = Annotated[Attentive | MacsPrior | Uniform, Field(discriminator="name")]


class Sampler(Protocol):
    """What a built sampler can do."""

    def draw(self, rng: np.random.Generator, count: int, judge: Judge) -> list[Arch]:
        """Draw the random subnets of one step.

        What is taken from `rng` never depends on what `judge` says, so that runs can be compared.

        Args:
            rng: draws.
            count: number of subnets.
            judge: loss of candidates on the step's batch, for samplers that compare candidates by it.
        """
        ...


def build_sampler(config: Sampling, space: Space, classes: int, channels: int) -> Sampler:
    """The sampler of a configuration, with its tables estimated.

    Args:
        config: which sampling.
        space: of the supernet.
        classes: outputs of its classifier, which count for the MACs.
        channels: its input channels.

    Raises:
        UserError: the range of MACs is not of this space, or the pairs of a predictor cannot be used.
    """
    match config:
        case Uniform():
            return UniformSampler(space)
        case MacsPrior():
            return PriorSampler(Prior(config, space, classes, channels))
        case Attentive(judge=judge):
            # First the pairs, which may be refused, then the tables, which take seconds.
            score = fit_accuracy(judge.pairs, space) if isinstance(judge, Predicted) else None
            prior = Prior(config, space, classes, channels)
            return AttentiveSampler(config.mode, judge.candidates, prior, score)


class UniformSampler(NamedTuple):
    """The uniform sampling of BigNAS."""

    space: Space

    def draw(self, rng: np.random.Generator, count: int, judge: Judge) -> list[Arch]:
        return [sample(self.space, rng) for _ in range(count)]


class PriorSampler(NamedTuple):
    """The sampling of AttentiveNAS with a single candidate, which needs no judge."""

    prior: "Prior"

    def draw(self, rng: np.random.Generator, count: int, judge: Judge) -> list[Arch]:
        return [decode(self.prior.space, row) for row in self.prior.draw(rng, count, 1)[:, 0]]


class AttentiveSampler(NamedTuple):
    """The sampling of AttentiveNAS.

    Args:
        mode: whether the best or the worst candidate is taken.
        candidates: how many there are for each subnet.
        prior: draws them.
        accuracy: predicts that of encoded architectures; None: the step's judge decides.
    """

    mode: Literal["bestup", "worstup", "coin"]
    candidates: int
    prior: "Prior"
    accuracy: Callable[[Codes], NDArray[np.float64]] | None

    def draw(self, rng: np.random.Generator, count: int, judge: Judge) -> list[Arch]:
        best = self.mode == "bestup"
        if self.mode == "coin":
            best = rng.random() < 0.5
        codes_SKF = self.prior.draw(rng, count, self.candidates)  # S subnets, K candidates for each
        # One call for the candidates of all subnets: the judge waits for the device once.
        codes_NF = codes_SKF.reshape(-1, codes_SKF.shape[-1])
        space = self.prior.space
        if self.accuracy is None:
            loss_N = np.array(judge([decode(space, row) for row in codes_NF]))
        else:
            loss_N = -self.accuracy(codes_NF)
        loss_SK = loss_N.reshape(codes_SKF.shape[:2])
        selected_S = loss_SK.argmin(1) if best else loss_SK.argmax(1)
        return [decode(space, codes_KF[k]) for codes_KF, k in zip(codes_SKF, selected_S, strict=True)]


class Bins(NamedTuple):
    """The range low..high of MACs, both included, cut into `number` bins of the same width."""

    low: int
    high: int
    number: int

    def of(self, macs: NDArray[np.int64]) -> NDArray[np.int64]:
        """The bin (N,) of each of these MACs (N,); -1 outside the range."""
        # In integers, so that no MACs fall between two bins by rounding.
        bin_N = (macs - self.low) * self.number // (self.high - self.low + 1)
        return np.where((macs < self.low) | (macs > self.high), -1, bin_N)


class Prior:
    """p(bin) and p(choice | bin) of a space, and the samples from which they were estimated.

    Bins into which no sample fell are left out. The estimate has a random stream of its own, the same in
    every run, so that all ranks and a resumed run have the same tables.

    Args:
        config: range, bins and numbers of samples and tries.
        space: of the supernet.
        classes: outputs of its classifier.
        channels: its input channels.

    Raises:
        UserError: no sample has MACs within the range, or there are too many bins.
    """

    def __init__(self, config: _Prior, space: Space, classes: int, channels: int):
        self.space, self.classes, self.channels, self.tries = space, classes, channels, config.tries
        self.bins = _bins(config, space, classes, channels)
        self.known_NF, bin_N = self._sampled(config.samples)
        if len(bin_N) == 0:
            low, high = format_count(self.bins.low), format_count(self.bins.high)
            raise UserError(
                f"None of {config.samples} sampled architectures of space '{space.name}' has MACs within "
                f"{low} to {high}; widen low and high of the sampling, or raise its samples."
            )
        self.bin_B, self.start_B, self.hits_B = np.unique(bin_N, return_index=True, return_counts=True)
        # A bin is drawn in proportion to its samples, or every bin alike.
        weight_B = self.hits_B if config.target == "sampled" else np.ones(len(self.hits_B))
        self.share_B = weight_B / weight_B.sum()
        self.cumulative_BFV = self._cumulative()

    def macs(self, codes_NF: Codes) -> NDArray[np.int64]:
        """MACs (N,)."""
        return costs_of(self.space, codes_NF, self.classes, self.channels).macs

    def draw(self, rng: np.random.Generator, slots: int, candidates: int) -> Codes:
        """Draw a target bin for each slot, and architectures of that bin: (slots, candidates, F)."""
        target_N = rng.choice(len(self.share_B), slots, p=self.share_B).repeat(candidates)
        rows, columns = len(target_N), len(self.space.columns)
        # All T tries at once: a choice is 1 + how many cumulative probabilities a uniform number reaches.
        place_NTF = rng.random((rows, self.tries, columns), np.float32)
        codes_NTF = np.ones(place_NTF.shape, np.uint8)
        for cumulative_BF in np.moveaxis(self.cumulative_BFV, 2, 0):
            codes_NTF += place_NTF >= cumulative_BF[target_N][:, None]
        codes_NTF = canonical(self.space, codes_NTF.reshape(-1, columns)).reshape(codes_NTF.shape)
        # The last try is a sample that is known to be in the bin, so that the first hit always exists.
        resort_N = self.start_B[target_N] + rng.integers(self.hits_B[target_N])
        codes_NTF = np.concatenate([codes_NTF, self.known_NF[resort_N][:, None]], axis=1)
        bin_NT = self.bins.of(self.macs(codes_NTF.reshape(-1, columns))).reshape(codes_NTF.shape[:2])
        first_N = (bin_NT == self.bin_B[target_N][:, None]).argmax(1)  # the first True of each row
        return codes_NTF[np.arange(rows), first_N].reshape(slots, candidates, columns)

    def _sampled(self, samples: int) -> tuple[Codes, NDArray[np.int64]]:
        """Uniform samples within the bins, and the bin of each, in the order of bins."""
        rng, codes, bins = numpy_generator(0, "macs prior"), [], []
        with progress("estimate p(choice | MACs)", -(-samples // CHUNK)) as advance:
            for start in range(0, samples, CHUNK):
                codes_NF = sample_codes(self.space, min(CHUNK, samples - start), rng)
                bin_N = self.bins.of(self.macs(codes_NF))
                codes.append(codes_NF[bin_N >= 0])
                bins.append(bin_N[bin_N >= 0])
                advance("")
        codes_NF, bin_N = np.concatenate(codes), np.concatenate(bins)
        # By bin, so that the samples of a bin are one range: `start_B` and `hits_B`.
        order = np.argsort(bin_N, kind="stable")
        return codes_NF[order], bin_N[order]

    def _cumulative(self) -> NDArray[np.float32]:
        """p(choice <= value | bin), (B, F, most choices - 1)."""
        bins, values = len(self.bin_B), 1 + int(self.space.cardinalities.max())
        bin_N = np.arange(bins).repeat(self.hits_B)
        found = []
        for codes_N, choices in zip(self.known_NF.T, self.space.cardinalities, strict=True):
            # Bin and code as one number, so that one count serves all bins.
            hits_BV = np.bincount(bin_N * values + codes_N, minlength=bins * values).reshape(bins, values)
            hits_BV = hits_BV[:, 1:]  # code 0 is an inactive block, which is no choice
            cumulative_BV = hits_BV.cumsum(1) / np.maximum(hits_BV.sum(1, keepdims=True), 1)
            cumulative_BV[:, choices - 1 :] = 1  # also where a block was never active
            found.append(cumulative_BV[:, :-1])  # the last is 1, which no uniform number reaches
        return np.stack(found, axis=1).astype(np.float32)


def _bins(config: _Prior, space: Space, classes: int, channels: int) -> Bins:
    """The bins of the part of low..high that architectures of the space reach."""
    least = cost_of(space, smallest(space), classes, channels)[0]
    most = cost_of(space, largest(space), classes, channels)[0]
    # Cut to what the space reaches: bins outside of that would be empty.
    low = least if config.low is None else max(config.low, least)
    high = most if config.high is None else min(config.high, most)
    if low > high:
        given = []
        if config.low is not None:
            given.append(f"low = {format_count(config.low)}")
        if config.high is not None:
            given.append(f"high = {format_count(config.high)}")
        raise UserError(
            f"Sampling with {' and '.join(given)} leaves nothing of space '{space.name}', whose subnets have "
            f"{format_count(least)} to {format_count(most)} MACs; choose low and high within, low first."
        )
    # Small networks, such as those of digits, have fewer MACs in all than AttentiveNAS has in a bin.
    width = config.bin or max(1, min(BIN, (high - low) // 10))
    # A whole number of equal bins: their width is only about the one asked for.
    bins = Bins(low, high, max(1, round((high - low) / width)))
    if bins.number > MOST_BINS:
        raise UserError(
            f"Sampling with bin = {format_count(width)} cuts {format_count(low)} to {format_count(high)} "
            f"MACs into {bins.number} bins, and {MOST_BINS} are the most; use a larger bin."
        )
    return bins


class _Pair(Config, extra="ignore"):
    arch: Arch
    val_accuracy: float = Field(ge=0, le=1)


def fit_accuracy(path: Path, space: Space) -> Callable[[Codes], NDArray[np.float64]]:
    """Predicted accuracy (N,) of encoded architectures, learned from the rows of a pairs.jsonl.

    Raises:
        UserError: the file is missing or damaged, has too few rows, or is of another space.
    """
    pairs = [validate(_Pair, row, f"{path}, line {i}") for i, row in enumerate(read_lines(path), start=1)]
    if len(pairs) < FEWEST_PAIRS:
        raise UserError(
            f"'{path}' has {counted(len(pairs), 'measured subnet')}, and a predictor needs at least "
            f"{FEWEST_PAIRS}; name the pairs.jsonl of a run after python -m predictors.collect, or judge by "
            "batch_loss."
        )
    try:
        codes_NF = np.stack([encode(space, pair.arch) for pair in pairs])
    except UserError as error:
        raise UserError(f"'{path}' was measured on another space than '{space.name}': {error}") from None
    # Here, since scikit-learn takes a second to import and only this way of sampling needs it.
    from sklearn.linear_model import BayesianRidge

    model = BayesianRidge().fit(thermometer(space, codes_NF), [pair.val_accuracy for pair in pairs])

    def predict(codes_NF: Codes) -> NDArray[np.float64]:
        accuracy_N: NDArray[np.float64] = model.predict(thermometer(space, codes_NF))
        return accuracy_N

    return predict
