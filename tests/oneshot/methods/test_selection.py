"""Selection by perturbation (DARTS-PT), against the algorithm written anew."""

from pathlib import Path

import pytest
import torch

from engine.command.cli import parse
from engine.data.digits import Digits
from engine.data.sources import load_data
from engine.errors import UserError
from engine.run import read_json, read_lines
from engine.seed import numpy_generator
from oneshot.axes.edge_weights import EdgeWeights
from oneshot.methods.darts_pt import DartsPt
from oneshot.methods.selection import PerturbationSelection
from oneshot.objectives.images import ImageObjective, search_network
from oneshot.search import Search
from oneshot.searcher import Searcher
from oneshot.spaces.cells import find_space
from oneshot.spaces.genotype import Genotype

CPU = torch.device("cpu")
IMAGES = load_data(Digits(val=0.5), CPU, 0)


def test_published_length() -> None:
    selection = PerturbationSelection()
    # 14 edges and the 3 nodes with more than two of them; 16 intervals of 5 epochs lie between 17 decisions.
    assert selection.decisions(find_space("darts")) == 17 and selection.tuning(find_space("darts")) == 80
    assert selection.decisions(find_space("nasbench201")) == 6
    assert selection.tuning(find_space("nasbench201")) == 25
    wanted = [selection.wanted(epoch) for epoch in (1, 5, 6, 10, 11)]
    assert wanted == [1, 1, 2, 2, 3]


def searcher(space_name: str, images: int) -> Searcher:
    space = find_space(space_name)
    selection = PerturbationSelection(tune_epochs=0, images=images)
    method = DartsPt(selection=selection, exclude_none=space_name == "darts_s2")
    torch.manual_seed(0)
    network = search_network(space, method, 2, 1 if space_name == "nasbench201" else 3, 10, 1)
    return Searcher(method, space, ImageObjective(network, IMAGES, 16, False), 3, 2)


def accuracy(search: Searcher, weights: dict[str, torch.Tensor], images: int) -> float:
    """Of the first images, with the statistics of the batch."""
    found = {kind: EdgeWeights(weight) for kind, weight in weights.items()}
    right = total = 0
    for x, y in IMAGES.batches("val", 250, images):
        right += int((search.state.objective.network.train()(x, found).argmax(1) == y).sum())
        total += len(y)
    return right / total


@torch.no_grad()
def by_the_paper(search: Searcher, images: int) -> dict[str, list[list[tuple[str, int]]]]:
    """Operations of edges in a random order, then edges of nodes; softmax where nothing is decided yet."""
    space = search.state.space
    weights = {kind: alpha.softmax(-1).clone() for kind, alpha in search.state.alphas.operations.items()}
    operation: dict[str, dict[int, int]] = {kind: {} for kind in space.cells}
    kept = {kind: list(range(len(space.edges))) for kind in space.cells}
    busy = [node for node, into in enumerate(space.entering) if into.stop - into.start > (space.keeps or 99)]
    for number in range(len(space.edges) + len(busy)):
        for kind in space.cells:
            rng = numpy_generator(3, "selection", kind, number)
            left = [e for e in range(len(space.edges)) if e not in operation[kind]]
            if left:
                edge = left[int(rng.integers(len(left)))]
                scores = []
                for o in range(len(space.operations)):
                    changed = {name: weight.clone() for name, weight in weights.items()}
                    changed[kind][edge, o] = 0
                    scores.append(accuracy(search, changed, images))
                operation[kind][edge] = scores.index(min(scores))
                weights[kind][edge] = 0
                weights[kind][edge, operation[kind][edge]] = 1
                continue
            crowded = [n for n in busy if len([e for e in kept[kind] if e in span(space, n)]) > space.keeps]
            node = crowded[int(rng.integers(len(crowded)))]
            while len(edges := [e for e in kept[kind] if e in span(space, node)]) > space.keeps:
                scores = []
                for edge in edges:
                    changed = {name: weight.clone() for name, weight in weights.items()}
                    changed[kind][edge] = 0
                    scores.append(accuracy(search, changed, images))
                last = len(scores) - 1 - scores[::-1].index(max(scores))
                kept[kind].remove(edges[last])
                weights[kind][edges[last]] = 0
    nodes = {}
    for kind in space.cells:
        nodes[kind] = [
            [
                (space.operations[operation[kind][e]], space.edges[e][0])
                for e in kept[kind]
                if e in span(space, n)
            ]
            for n in range(space.nodes)
        ]
    return nodes


def span(space: object, node: int) -> range:
    into = space.entering[node]  # type: ignore[attr-defined]
    return range(into.start, into.stop)


@pytest.mark.parametrize("name", ["nasbench201", pytest.param("darts_s2", marks=pytest.mark.slow)])
def test_decisions_are_the_papers(name: str) -> None:
    search = searcher(name, 40)
    wanted = by_the_paper(search, 40)
    buffers = {name: buffer.clone() for name, buffer in search.state.objective.network.named_buffers()}
    search.begin_epoch(1)
    found, _ = search.final_genotype()
    assert isinstance(found, Genotype)
    assert {kind: [list(node) for node in cell.nodes] for kind, cell in found.cells.items()} == wanted
    # Asking leaves no trace.
    for key, buffer in search.state.objective.network.named_buffers():
        assert torch.equal(buffer, buffers[key])


@pytest.mark.slow
def test_a_search_tunes_between_decisions_and_resumes(tmp_path: Path) -> None:
    flags = ["--method", "darts_pt", "--space", "nasbench201", "--cells", "1", "--channels", "2", "--device"]
    flags += [
        "cpu",
        "--epochs",
        "1",
        "--method.selection.tune-epochs",
        "1",
        "--method.selection.images",
        "30",
    ]
    flags += ["--evaluate-images", "30", "--batch-size", "128"]
    whole = parse(Search, [*flags, "--out", str(tmp_path / "whole")])
    assert whole.execute() == 0
    logged = [p for p in read_lines(tmp_path / "whole" / "metrics.jsonl") if "genotype" in p]
    # One epoch of the search, and one after each of the first five of six decisions.
    assert len(logged) == 6
    # A decided edge has one operation, and keeps it.
    for epoch, point in enumerate(logged):
        sure = [row for row in point["alphas"]["cell"] if max(row) == 1]
        assert len(sure) == epoch
    final = read_json(tmp_path / "whole" / "genotype.json")
    # Stopped after one second again and again, it finds the same.
    for _ in range(40):
        pieces = parse(Search, [*flags, "--out", str(tmp_path / "pieces"), "--resume", "--stop-after", "1s"])
        if pieces.execute() == 0:
            break
    assert read_json(tmp_path / "pieces" / "genotype.json") == final


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="selection asks how the network is without an operation"):
        parse(Search, ["--method", "gdas", "--method.selection.tune-epochs", "1"])
