"""Methods and searches as small as they can be, of every method on every space, for the contracts."""

import functools
import math
from typing import Any, get_args

import torch

from engine.config import over_defaults, validate
from engine.data.dataset import Data
from engine.data.digits import Digits
from engine.data.sources import load_data
from engine.data.text import Grammar, Text, load_text
from oneshot.axes.operation_costs import operation_costs
from oneshot.chains.layers import ImageShape
from oneshot.methods import MethodConfig
from oneshot.methods.method import Method
from oneshot.objectives.building import image_objective
from oneshot.objectives.objective import Objective
from oneshot.objectives.text import TextObjective, TextSettings
from oneshot.search import Search
from oneshot.searcher import Searcher
from oneshot.spaces.search_space import SearchSpace

NAMES = [kind.model_fields["name"].default for kind in get_args(get_args(MethodConfig)[0])]
FEW = ("candidates", "finalists", "batches", "controller_steps", "samples_a_step", "updates", "samples")


def small_method(name: str, space: SearchSpace, settings: dict[str, Any]) -> Method:
    """A method with what was published for the space, as the command builds it, that judges few networks."""
    values = Search.prepare({"method": {"name": name, **settings}, "space": space.name})
    found = validate(Search, over_defaults(Search, values), "test").method
    if found.selection is not None:
        found = found.model_copy(update={"selection": found.selection.model_copy(update={"images": 16})})
    return found.model_copy(update={field: 2 for field in FEW if field in type(found).model_fields})


def small_search(
    method: Method, space: SearchSpace, device: torch.device, seed: int = 0, batch: int = 16
) -> Searcher:
    """A search of the smallest network, four epochs after the warm-up, with which each stage begins."""
    epochs = (method.warmup_epochs + 4) * max(1, len(getattr(method, "stages", ())))
    costs = operation_costs(method.penalties, space, device, ImageShape(8, 1, 10))
    if space.name == "recurrent":
        objective: Objective = TextObjective(_text(), TextSettings(hidden=8, bptt=6), 4, seed, device)
    else:
        # The smallest that all stages of a method can cut into parts.
        channels = math.lcm(4, *method.channel_parts)
        cells = 1 if space.name == "nasbench201" else 3
        objective = image_objective(space, method, _images(device), channels, cells, batch, seed)
    return Searcher(method, space, objective, seed, epochs, costs)


def _images(device: torch.device) -> Data:
    """A pretended device ends with its block, and so do its images."""
    return _on_cpu() if device.type == "cpu" else load_data(Digits(val=0.5), device, 0)


@functools.cache
def _on_cpu() -> Data:
    return load_data(Digits(val=0.5), torch.device("cpu"), 0)


@functools.cache
def _text() -> Text:
    return load_text(Grammar(sentences=200))
