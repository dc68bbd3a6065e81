"""What every search method must do on every space that it does not refuse: learn, stay on its feet, resume
exactly, hand over a cell."""

import io
from typing import Any

import pytest
import torch
from chains import small_chain
from small_search import NAMES, small_method, small_search
from torch import Tensor

from oneshot.axes.progress import Progress
from oneshot.chains.genotype import ChainGenotype
from oneshot.methods.method import Method
from oneshot.searcher import Searcher
from oneshot.spaces.cells import SPACES, CellSpace, find_space
from oneshot.spaces.genotype import Genotype
from oneshot.spaces.search_space import SearchSpace

CPU = torch.device("cpu")
SMALL_CHAIN = small_chain()
COMBINED: list[tuple[str, str, dict[str, Any]]] = [
    ("darts", "nasbench201", {"order": "second"}),
    ("darts", "darts_s2", {"order": "exact"}),
    ("darts", "recurrent", {"order": "second"}),
    ("gaea", "darts", {"level": "single"}),
    ("gaea", "nasbench201", {"level": "bilevel", "exclude_none": False}),
    ("pc_darts", "nasbench201", {"penalties": [{"name": "beta_decay"}, {"name": "cost"}]}),
    ("gdas", "darts_s3", {"penalties": [{"name": "cost", "of": "params", "form": "add"}]}),
    ("pr_darts", "nasbench201", {"penalties": []}),
    ("pr_darts", SMALL_CHAIN.name, {"penalties": []}),
    ("darts", SMALL_CHAIN.name, {"order": "second", "penalties": [{"name": "cost", "form": "add"}]}),
    ("proxyless_r", SMALL_CHAIN.name, {"weights_alone": 0}),
    ("proxyless", SMALL_CHAIN.name, {"relaxation": {"paths": "all"}, "penalties": [{"name": "cost"}]}),
    ("gdas", "nasbench201", {"relaxation": {"name": "reinmax"}}),
    ("sdarts", "nasbench201", {"attack": "adversarial"}),
]
SHARED = ("darts_s1", "darts_s2", "darts_s3", "darts_s4")  # other operations on the graph of darts


def named(space_name: str) -> SearchSpace:
    return SMALL_CHAIN if space_name == SMALL_CHAIN.name else find_space(space_name)


def take(search: Searcher, steps: int, epoch: int, first: int = 0) -> list[Tensor]:
    """The losses of some steps of an epoch."""
    search.state.progress = Progress(epoch, search.epochs)
    batches = search.state.objective.batches(epoch, first)
    return [search.step(number, *next(batches)) for number in range(first, first + steps)]


def copied(state: dict[str, Any]) -> dict[str, Any]:
    """Through a file, as --resume does."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def tensors(state: Any) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state.detach().clone()]
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else []
    return [tensor for part in parts for tensor in tensors(part)]


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))


def cases() -> list[Any]:
    spaces = [*SPACES, SMALL_CHAIN]
    found = [(name, space.name, {}) for name in NAMES for space in spaces] + COMBINED
    return [pytest.param(*case, id="-".join((*case[:2], *case[2]))) for case in found]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "space_name", "settings"), cases())
def test_contract(name: str, space_name: str, settings: dict[str, Any]) -> None:
    space = named(space_name)
    method = small_method(name, space, settings)
    space = method.offered(space)
    refusal = method.refuse(space)
    if refusal is not None:
        assert (
            refusal.startswith(f"Method {name} cannot search space {space_name}: ")
            and refusal.endswith(".")
            and "\n" not in refusal
        )
        return
    if space.name in SHARED and not settings:
        check_short(method, space)
        return
    ours, again, other = (small_search(method, space, CPU, seed) for seed in (0, 0, 1))
    start, warm = ours.state.state_dict(), method.warmup_epochs
    weights, alphas = tensors(start["network"]), tensors(start["alphas"])
    if warm:
        take(ours, 1, warm - 1)
        assert same(ours.state.alphas.all(), alphas), "the architecture waits"
        ours.state.load_state_dict(copied(small_search(method, space, CPU).state.state_dict()))

    losses = take(ours, 2, warm)
    assert all(loss.isfinite().all() for loss in losses)
    assert not same(ours.state.state_dict()["network"], weights)
    assert (
        all(not torch.equal(a, b) for a, b in zip(ours.state.alphas.all(), alphas, strict=True))
        or not method.has_architecture_step
    )
    assert method.has_architecture_step or same(ours.state.alphas.all(), alphas)
    assert torch.equal(take(again, 1, warm)[0], losses[0]), "equal seeds"
    assert not torch.equal(take(other, 1, warm)[0], losses[0]), "other seeds"

    method.after_epoch(ours.state)
    state = copied(ours.state.state_dict())
    (goes_on,) = take(ours, 1, warm, first=2)
    again.state.load_state_dict(state)
    assert torch.equal(take(again, 1, warm, first=2)[0], goes_on)
    assert same(again.state.state_dict(), ours.state.state_dict()), "resumed, bit for bit"

    for kind, weights_EO in method.probabilities(space, ours.state.alphas).items():
        allowed_EO = space.allowed_mask(kind)
        assert (weights_EO >= 0).all() and (weights_EO[~allowed_EO] == 0).all()
        if not method.relaxation.sums_to_one:
            continue
        parts = (
            [weights_EO[into].sum() for into in space.entering] if method.edge_weights else weights_EO.sum(-1)
        )
        torch.testing.assert_close(torch.as_tensor(parts), torch.ones(len(parts)))
    assert ours.measure(limit=40) == ours.measure(limit=40)
    check_cells(method, space, ours)


def check_short(method: Method, space: SearchSpace) -> None:
    """One step and the cell: the graph of these spaces is that of darts, on which the rest is checked."""
    search = small_search(method, space, CPU)
    (losses,) = take(search, 1, method.warmup_epochs)
    assert losses.isfinite().all()
    check_cells(method, space, search)


def check_cells(method: Method, space: SearchSpace, search: Searcher) -> None:
    """What is read off is a cell of the space, and survives a file."""
    found = [method.genotype(search.state)]
    # DARTS-PT asks for each operation of each edge: on few operations here, and in its own tests.
    if method.selection is None or space.name in ("nasbench201", "darts_s2", "darts_s4"):
        found.append(method.final_genotype(search.state))
    for genotype in found:
        if isinstance(genotype, ChainGenotype):
            assert ChainGenotype.model_validate_json(genotype.model_dump_json()) == genotype
            assert genotype.space == space
            continue
        assert isinstance(space, CellSpace)
        assert Genotype.model_validate_json(genotype.model_dump_json()) == genotype
        assert genotype.space == space.name and set(genotype.cells) == set(space.cells)
        for kind, cell in genotype.cells.items():
            keeps = [
                into.stop - into.start if space.keeps is None else min(space.keeps, into.stop - into.start)
                for into in space.entering
            ]
            assert [len(node) for node in cell.nodes] == keeps
            offered = {
                (space.edges[e][1] - space.inputs, space.edges[e][0], name)
                for e, name in allowed(space, kind)
            }
            assert {
                (node, source, op) for node, edges in enumerate(cell.nodes) for op, source in edges
            } <= offered


def allowed(space: SearchSpace, kind: str) -> list[tuple[int, str]]:
    return [(int(e), space.operations[int(o)]) for e, o in space.allowed_mask(kind).nonzero()]
