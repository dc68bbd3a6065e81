"""What a search knows when it ends: measured, counted, and compared with what was published."""

import contextlib
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from engine.compute.macs import count_parameters
from engine.config import are, counted, read_recipe
from engine.errors import UserError
from oneshot.axes.geometry import Adam
from oneshot.chains.genotype import ChainGenotype
from oneshot.chains.target import TargetReport
from oneshot.ending.collapse import skips, warning
from oneshot.ending.margins import decisions
from oneshot.ending.published import rate_remark
from oneshot.ending.record import UNDECIDED, Change, FinalSize, Outcome, TargetOutcome
from oneshot.language import Language
from oneshot.methods.method import Method
from oneshot.methods.sampled.architecture import architecture_of, as_edge_weights
from oneshot.networks.recurrent import CellNetwork
from oneshot.objectives.images import ImageObjective
from oneshot.objectives.text import TextObjective
from oneshot.searcher import Searcher
from oneshot.spaces.cells import find_space
from oneshot.spaces.costs import NetworkShape, edge_costs, published_shape
from oneshot.spaces.genotype import AnyGenotype, Genotype
from oneshot.trained import NetworkSize


class Ending(NamedTuple):
    """What a search measured and was told before it ended.

    Args:
        probabilities: the weights that the genotype was read off, (E, O) for each kind of cell.
        search_network: the last measured quality of the mixture; None: never measured.
        steps: steps of the weights that were made.
        limit: the most images or words to measure on; None: all.
        changes: settings that differ from the method's own.
        recipe: of the printed retraining; None: there is none.
        report: of a search with a target.
    """

    probabilities: Mapping[str, Tensor]
    search_network: float | None
    steps: int
    limit: int | None
    changes: tuple[Change, ...]
    recipe: str | None
    report: TargetReport | None = None


def conclude(searcher: Searcher, genotype: AnyGenotype, ending: Ending) -> Outcome:
    """Measure what was read off with the shared weights, and say how sure the search is of it."""
    state, method, objective = searcher.state, searcher.method, searcher.state.objective
    architecture = architecture_of(state.space, genotype)
    weights = as_edge_weights(state.space, architecture)
    # The running statistics belong to the mixture that was trained; what is read off it has others.
    discretised = state.measure(weights, ending.limit, batch_statistics=True)
    found = decisions(state.space, architecture, ending.probabilities) if method.has_architecture_step else ()
    measured_on = objective.measured_items
    if ending.limit is not None:
        measured_on = min(ending.limit, measured_on)
    is_accuracy, chance = objective.quality == "accuracy", objective.chance
    qualities = [discretised, *([] if ending.search_network is None else [ending.search_network])]
    outcome = Outcome(
        method=method.name,
        space=state.space.name,
        quality="accuracy" if is_accuracy else "perplexity",
        search_network=ending.search_network,
        drawn=method.samples_operations,
        discretised=discretised,
        measured_on=measured_on,
        standard_error=math.sqrt(discretised * (1 - discretised) / measured_on) if is_accuracy else None,
        chance=chance,
        above_chance=_above(chance, qualities, measured_on) if is_accuracy else min(qualities) < chance,
        trained_on=method.level != "bilevel",
        sizes=_sizes(genotype, searcher, ending.recipe),
        decisions=found,
        lead=state.lead,
        undecided=sum(decision.margin < UNDECIDED for decision in found),
        skips=skips(genotype),
        steps=ending.steps,
        steps_an_epoch=objective.steps(0),
        architecture_steps=architecture_steps(method, ending.steps, objective.steps(0)),
        changes=ending.changes,
        warnings=(),
        target=None if ending.report is None else TargetOutcome(**ending.report.facts()),
    )
    warnings = _warnings(outcome, method, genotype)
    warnings += method.doubts(state.space, ending.probabilities)
    # Finalists are judged on all images, so their error is smaller than that of `discretised`.
    if is_accuracy and state.lead is not None:
        error = math.sqrt(discretised * (1 - discretised) / objective.measured_items)
        if state.lead < error:
            warnings.append(
                f"the best judged architecture is ahead of the next by {100 * state.lead:.1f} points, "
                f"less than the standard error of {100 * error:.1f}: not decided yet"
            )
    return outcome.model_copy(update={"warnings": tuple(warnings)})


def architecture_steps(method: Method, steps: int, steps_an_epoch: int) -> int | None:
    """How many of the first `steps` steps moved the architecture; None: the method has no such steps."""
    if not method.has_architecture_step:
        return None
    # In a single level both move in each step.
    every = 1 if method.level == "single" else method.architecture_every
    alone = min(steps, method.warmup_epochs * steps_an_epoch)
    return steps // every - alone // every


def _above(chance: float, accuracies: list[float], measured_on: int) -> bool:
    """Whether the best accuracy is above chance by two standard errors."""
    error = math.sqrt(chance * (1 - chance) / measured_on)
    return max(accuracies) > chance + 2 * error


def _warnings(outcome: Outcome, method: Method, genotype: AnyGenotype) -> list[str]:
    """What makes the result doubtful, a sentence each."""
    found = []
    if not outcome.above_chance:
        without = f"perplexity {outcome.chance:.1f} by the frequencies of words"
        if outcome.quality == "accuracy":
            without = f"{100 * outcome.chance:.1f}% without looking at the images"
        found.append(
            f"no better than chance ({without}): nothing was learned that could choose; raise --epochs, or "
            "look at the data and its labels"
        )
    if outcome.steps_an_epoch == 1:
        found.append(
            "an epoch is a single step: schedules go by epochs and hardly anything is learned between them; "
            "lower --batch-size or give more images"
        )
    if outcome.architecture_steps == 0:
        found.append(
            "no step moved the architecture, which moves in one of "
            f"{counted(method.architecture_every, 'step')} after the first "
            f"{counted(method.warmup_epochs, 'epoch')}: nothing was learned that could choose; raise "
            "--epochs, or lower --batch-size, --method.warmup-epochs or --method.architecture-every"
        )
    elif outcome.undecided:
        found.append(
            f"{outcome.undecided} of {len(outcome.decisions)} edges {are(outcome.undecided)} decided by "
            f"less than {100 * UNDECIDED:g}%: not decided yet{_reach(outcome, method)}"
        )
    target = outcome.target
    if target is not None and 2 * target.changed > target.layers:
        found.append(
            f"{target.changed} of {target.layers} layers were decided by the target alone: the probabilities "
            "did not move far enough; raise --epochs or --method.geometry.lr"
        )
    remark = rate_remark(outcome.changes, method)
    if remark is not None:
        found.append(remark)
    collapse = warning(genotype, method) if method.has_architecture_step else None
    if collapse is not None:
        found.append(collapse.rstrip("."))
    return found


def _reach(outcome: Outcome, method: Method) -> str:
    """How far the alphas can have moved, as the end of a sentence."""
    steps = outcome.architecture_steps
    if steps is None or not isinstance(method.geometry, Adam):
        return ""
    rate = method.geometry.lr
    return f" ({counted(steps, 'step')} of rate {rate:g} move a logit by about {steps * rate:.2g} at most)"


def _sizes(genotype: AnyGenotype, searcher: Searcher, recipe: str | None) -> tuple[FinalSize, ...]:
    """What the final network costs as published and as the next command would build it."""
    objective = searcher.state.objective
    if isinstance(genotype, ChainGenotype):
        assert isinstance(objective, ImageObjective)
        image = objective.image
        macs, params = genotype.cost(image)
        size = FinalSize(
            size="retrain", channels=None, cells=None, image_size=image.size, params=params, macs=macs
        )
        return (size,)
    if isinstance(objective, TextObjective):
        return (_recurrent_size(genotype, len(objective.recurrent.bias_V)),)
    assert isinstance(objective, ImageObjective)
    sizes = [_cell_size(genotype, published_shape(find_space(genotype.space)), "published")]
    values = read_recipe(recipe).get("network", {}) if recipe else {}
    network = NetworkSize(**values)
    data = objective.data
    shape = NetworkShape(
        network.channels, network.cells, len(data.classes), data.size, network.stem, data.channels
    )
    # Costs in closed form are for sides that halve exactly; others can be built all the same.
    with contextlib.suppress(UserError):
        sizes.append(_cell_size(genotype, shape, "retrain"))
    return tuple(sizes)


def _cell_size(genotype: Genotype, shape: NetworkShape, name: Any) -> FinalSize:
    space = find_space(genotype.space)
    return FinalSize(
        size=name,
        channels=shape.channels,
        cells=shape.cells,
        image_size=shape.size,
        params=edge_costs(space, "params", shape).total(genotype),
        macs=edge_costs(space, "macs", shape).total(genotype),
    )


def _recurrent_size(genotype: Genotype, words: int) -> FinalSize:
    """Of the published number of units, for the words of the text that was searched on."""
    hidden = Language().hidden
    cell = genotype.cells["recurrent"]
    with torch.device("meta"):  # no memory: its parameters are only counted
        network: nn.Module = CellNetwork(words, hidden, cell)
    params = count_parameters(network)
    # A word multiplies every matrix once: that of the input and the hidden state, one for each edge, and the
    # decoder's. Looking a word up costs none.
    edges = sum(len(node) for node in cell.nodes)
    macs = 2 * hidden * 2 * hidden + edges * hidden * 2 * hidden + words * hidden
    return FinalSize(size="published", channels=hidden, cells=None, image_size=None, params=params, macs=macs)
