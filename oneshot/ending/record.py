"""What a search knows when it ends, as data: outcome.json beside genotype.json."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from engine.config import Config, validate
from engine.run import read_json, write_json

FILE = "outcome.json"
UNDECIDED = 0.01  # a margin below this is no decision yet


class FinalSize(Config):
    """What the network of the found cell or chain costs at one size."""

    size: Literal["published", "retrain"] = Field(
        description="published: of the papers' evaluation; retrain: as the printed next command builds it"
    )
    channels: int | None = Field(
        description="width of the first cells, units of a recurrent cell; none: a chain"
    )
    cells: int | None = Field(description="how many, in NAS-Bench-201 a stage; none: a chain or recurrent")
    image_size: int | None = Field(description="side of an image, in pixels; none: text")
    params: int
    macs: int = Field(description="multiply-accumulates of one image or one word")


class Decision(Config):
    """One operation on one edge, and how near another choice was."""

    cell: str = Field(description="kind of cell")
    source: int = Field(description="the state that the edge reads")
    target: int = Field(description="the node that the edge enters")
    operation: str
    rival: str | None = Field(
        description="what would have been taken instead with a little less weight; none: nothing else"
    )
    margin: float = Field(description="(weight - weight of the rival) / weight")


class Change(Config):
    """A setting that differs from the method's own on the space that was searched."""

    setting: str = Field(description="as a flag names it, without dashes")
    published: Any = Field(description="the method's on this space")
    used: Any


class TargetOutcome(Config):
    """What was found against what was aimed at; costs are MACs, parameters or milliseconds."""

    of: Literal["macs", "params", "latency"]
    aimed: float
    found: float = Field(description="cost of the chain that was read off")
    expected: float = Field(description="expected cost by the last probabilities")
    strongest: float = Field(description="cost of the chain of the strongest operations")
    changed: int = Field(description="layers in which the chain differs from that one")
    layers: int = Field(description="searched layers")
    factor: float | None = Field(
        description="what the search ended up weighing the cost with; none: proxyless_r, which has rewards"
    )


class Outcome(Config):
    """What a search says of itself."""

    method: str
    space: str
    quality: Literal["accuracy", "perplexity"] = Field(description="what both of the next two are")
    search_network: float | None = Field(description="of the search network after the last epoch")
    drawn: bool = Field(description="whether search_network is of one architecture that the method drew")
    discretised: float = Field(
        description="of what was read off, with the shared weights and BatchNorm statistics of each batch"
    )
    measured_on: int = Field(description="images or words that both were measured on")
    standard_error: float | None = Field(
        description="of the accuracy `discretised`, binomial; none: perplexity"
    )
    chance: float = Field(
        description="quality of always naming the most frequent class, or of the frequencies of words alone"
    )
    above_chance: bool = Field(
        description=(
            "whether search_network or discretised is better than chance, an accuracy by two standard errors"
        )
    )
    trained_on: bool = Field(
        description="whether the weights learned from these images, too: with a single level they did"
    )
    sizes: tuple[FinalSize, ...]
    decisions: tuple[Decision, ...] = Field(
        description="the edges of what was read off that a table of weights decided"
    )
    lead: float | None = Field(
        description="lead of the best of judged architectures over the next; none: none were judged"
    )
    undecided: int = Field(description=f"decisions with a margin below {UNDECIDED:g}")
    skips: dict[str, int] = Field(description="skip connections of each kind of cell")
    steps: int = Field(description="steps of the weights that were made")
    steps_an_epoch: int
    architecture_steps: int | None = Field(
        description="steps of the architecture that were made; none: the method has no such steps"
    )
    changes: tuple[Change, ...] = Field(description="settings that differ from the method's on this space")
    warnings: tuple[str, ...] = Field(description="sentences that were printed")
    target: TargetOutcome | None = Field(None, description="of a search with --target")


def write_outcome(run: Path, outcome: Outcome) -> None:
    """Write it into the folder of a search."""
    write_json(run / FILE, outcome.model_dump(mode="json"))


def read_outcome(run: Path) -> Outcome:
    """The outcome in the folder of a finished search.

    Raises:
        UserError: there is none, or it is damaged.
    """
    return validate(Outcome, read_json(run / FILE), str(run / FILE))
