"""What a search knows when it ends: margins by hand, changed settings, what is measured and written."""

import math
from pathlib import Path

import pytest
import torch

from engine.command.cli import parse
from engine.data.digits import Digits
from engine.data.text import Text
from oneshot.ending.conclude import _above, _reach, architecture_steps
from oneshot.ending.margins import decisions
from oneshot.ending.published import changes_of, rate_remark
from oneshot.ending.record import Outcome, read_outcome
from oneshot.methods.darts import Darts
from oneshot.methods.gaea import Gaea
from oneshot.methods.sampled.architecture import Architecture, architecture_of, as_genotype
from oneshot.objectives.images import ImageObjective, search_network
from oneshot.objectives.text import TextObjective, TextSettings
from oneshot.search import Search
from oneshot.searcher import Searcher
from oneshot.spaces.cells import find_space
from oneshot.spaces.read_genotype import find_genotype

TINY = (
    "--space",
    "nasbench201",
    "--channels",
    "4",
    "--cells",
    "1",
    "--threads",
    "1",
    "--evaluate-images",
    "60",
)


@pytest.fixture(autouse=True)
def _without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They and the estimate of memory have other tests, and take longer than these searches."""
    monkeypatch.setattr("oneshot.search.search_memory", lambda *search: None)
    monkeypatch.setattr("oneshot.search.say_memory", lambda *said: None)
    monkeypatch.setattr("oneshot.search_loop.draw_genotype", lambda genotype, path: [])
    monkeypatch.setattr("oneshot.search_loop.alphas_over_time", lambda history, space, path: path)


def searched(out: Path, *flags: str) -> Outcome:
    assert parse(Search, [*TINY, *flags, "--out", str(out)]).execute() == 0
    return read_outcome(out)


def test_the_margin_is_what_another_choice_lacks() -> None:
    """In a node of two edges of NAS-Bench-201 every operation counts, none too."""
    space = find_space("nasbench201")
    weight_EO = torch.full((6, 5), 0.1)
    weight_EO[:, 3] = 0.6
    weight_EO[2] = torch.tensor([0.3, 0.1, 0.1, 0.303, 0.197])  # none is near
    architecture: Architecture = {"cell": tuple((edge, 3) for edge in range(6))}
    found = decisions(space, architecture, {"cell": weight_EO})
    assert [round(d.margin, 4) for d in found] == [0.8333, 0.8333, 0.0099, 0.8333, 0.8333, 0.8333]
    assert (found[2].rival, found[2].source, found[2].target) == ("none from 1", 1, 2)


def test_where_edges_are_left_out_they_are_rivals_and_none_is_not() -> None:
    space = find_space("darts")
    weight_EO = torch.full((14, 8), 0.01)
    weight_EO[:, 0] = 0.9  # none
    # Node 3 reads states 0, 1 and 2 by the edges 2, 3 and 4; it keeps the first two.
    weight_EO[2, 4], weight_EO[3, 5], weight_EO[4, 3] = 0.05, 0.08, 0.04
    weight_EO[3, 6] = 0.06
    choices = ((0, 1), (1, 1), (2, 4), (3, 5), (5, 1), (6, 1), (9, 1), (10, 1))
    found = decisions(space, {"normal": choices}, {"normal": weight_EO})
    third, fourth = found[2:4]
    assert (third.rival, third.margin) == ("skip_connect from 2", pytest.approx(0.2))
    assert (fourth.rival, fourth.margin) == ("dil_conv_3x3 from 1", pytest.approx(0.25))
    assert found[0].margin == 0, "equal weights decide nothing"


def test_an_architecture_that_is_not_the_strongest_was_decided_otherwise() -> None:
    space = find_space("nasbench201")
    weight_EO = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.0]).expand(6, 5)
    assert decisions(space, {"cell": tuple((edge, 1) for edge in range(6))}, {"cell": weight_EO}) == ()
    # Where each edge keeps an operation, the others are as sure as they are: a target changes some layers.
    some = tuple((edge, 3 if edge < 2 else 1) for edge in range(6))
    assert [(d.source, d.target) for d in decisions(space, {"cell": some}, {"cell": weight_EO})] == [
        (0, 1),
        (0, 2),
    ]
    # What weighs nothing did not win: FairDARTS puts none where nothing reaches its threshold.
    assert decisions(space, {"cell": tuple((edge, 4) for edge in range(6))}, {"cell": weight_EO}) == ()


def test_a_genotype_is_its_architecture_again() -> None:
    for space, text in (("darts", "DARTS_V2"), ("recurrent", "DARTS_V2_recurrent")):
        genotype = find_genotype(text)
        architecture = architecture_of(find_space(space), genotype)
        edges = [sorted(node) for cell in genotype.cells.values() for node in cell.nodes]
        again = as_genotype(find_space(space), architecture)
        assert [sorted(node) for cell in again.cells.values() for node in cell.nodes] == edges


def test_changed_settings_are_found_and_the_rate_is_only_a_remark() -> None:
    method = parse(Search, ["--method", "pc_darts", "--method.geometry.lr", "0.1"]).method
    flags = {"epochs": 50, "batch_size": 96, "channels": 16}
    changes = changes_of(method, "darts", flags, {"cells": (8, 3)})
    assert [(c.setting, c.published, c.used) for c in changes] == [
        ("method.geometry.lr", 6e-4, 0.1),
        ("batch_size", 256, 96),
        ("cells", 8, 3),
    ]
    remark = rate_remark(changes, method)
    assert remark is not None
    assert "the rate 0.1 is for batches of 256" in remark and "--method.sgd.lr 0.0375" in remark
    slower = parse(Search, ["--method", "pc_darts", "--method.sgd.lr", "0.05"]).method
    assert rate_remark(changes_of(slower, "darts", flags, {}), slower) is None
    as_it_is = parse(Search, ["--method", "gaea", "--space", "nasbench201"]).method
    assert isinstance(as_it_is, Gaea)
    own = {"epochs": 25, "batch_size": 64, "channels": 24}
    assert changes_of(as_it_is, "nasbench201", own, {}) == ()


@pytest.mark.slow
def test_an_ending_says_what_it_knows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One step of first-order DARTS: nothing can be decided."""
    outcome = searched(tmp_path / "run", "--epochs", "1", "--batch-size", "600")
    assert (outcome.steps, outcome.steps_an_epoch, outcome.measured_on) == (1, 1, 60)
    assert outcome.undecided == sum(d.margin < 0.01 for d in outcome.decisions) > 0
    assert len(outcome.decisions) == 6 and not outcome.trained_on
    assert outcome.standard_error == pytest.approx(
        math.sqrt(outcome.discretised * (1 - outcome.discretised) / 60)
    )
    # One step chooses nothing.
    assert outcome.chance == pytest.approx(0.1, abs=0.01) and not outcome.above_chance
    published, retrained = outcome.sizes
    assert (published.size, published.channels, published.cells, published.image_size) == (
        "published",
        16,
        5,
        32,
    )
    assert (retrained.size, retrained.channels, retrained.image_size) == ("retrain", 8, 8)
    assert retrained.macs < published.macs
    said = capsys.readouterr().out
    for words in (
        "an epoch is a single step",
        f"{outcome.undecided} of 6 edges are decided by less than 1%: not decided yet",
        "batch_size 64 -> 600",
        "the rate 0.025 is for batches of 64",
        "accuracy on 60 images of the architecture's part",
        "made 1 step, 1 an epoch, 1 of the architecture; skip connections: ",
        "note: no better than chance (10.2% without looking at the images)",
        "cell.png; this search ended no better than chance",
    ):
        assert words in said


def test_chance_is_beaten_by_two_standard_errors_and_by_frequencies_of_words() -> None:
    assert not _above(0.1, [0.05, 0.159], 100) and _above(0.1, [0.05, 0.161], 100)
    train, val = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1]), torch.tensor([0, 0, 0, 1])
    words = Text(["a", "b"], {"train": train, "val": val})
    objective = TextObjective(words, TextSettings(hidden=4, bptt=2), 1, 0, torch.device("cpu"))
    assert objective.chance == pytest.approx((0.7**3 * 0.3) ** -0.25)
    network = search_network(find_space("nasbench201"), Darts(), 2, 1, 10, 1)
    for balance, chance in (("none", 64 / 630), ("sampler", 0.1)):
        images = Digits(val=0.5, balance=balance).load(torch.device("cpu"), 0)
        assert ImageObjective(network, images, 16, False).chance == pytest.approx(chance)


def test_only_steps_of_the_architecture_move_a_logit() -> None:
    flags = ("--method.warmup-epochs", "1", "--method.architecture-every", "5")
    method = parse(Search, ["--method", "proxyless", "--space", "darts", *flags]).method
    assert architecture_steps(method, 12, 2) == 2
    assert architecture_steps(method, 6, 3) == 1, (
        "the fifth, which is the second after three of weights alone"
    )
    outcome = Outcome.model_construct(architecture_steps=2)
    assert "(2 steps of rate 0.001 move a logit by about 0.002 at most)" in _reach(outcome, method)
    assert architecture_steps(parse(Search, ["--method", "darts"]).method, 12, 2) == 12
    assert architecture_steps(parse(Search, ["--method", "random_ws"]).method, 12, 2) is None


@pytest.mark.slow
def test_a_search_without_a_step_of_the_architecture_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = searched(
        tmp_path / "run", "--epochs", "2", "--batch-size", "600", "--method.architecture-every", "5"
    )
    assert (outcome.steps, outcome.architecture_steps) == (2, 0)
    (said,) = [sentence for sentence in outcome.warnings if "no step moved the architecture" in sentence]
    assert "raise --epochs" in said and not any(
        "are decided by less" in sentence for sentence in outcome.warnings
    )
    lines = capsys.readouterr().out.splitlines()
    assert f"note: {said}" in lines
    assert lines[-2].endswith(
        "this search learned nothing of the architecture: see the note on what to change"
    )


@pytest.mark.slow
def test_the_discretised_cell_leaves_no_trace_and_methods_without_alphas_end_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    original = Searcher.measure

    def measure(self: Searcher, limit: int | None = None) -> float:
        before = [buffer.clone() for buffer in self.state.objective.network.buffers()]
        weights = self.method.weigh_edges(
            self.state.space, self.state.alphas, self.state.progress, torch.Generator()
        )
        self.state.measure(weights, 20, batch_statistics=True)
        after = self.state.objective.network.buffers()
        seen.append(all(torch.equal(a, b) for a, b in zip(before, after, strict=True)))
        return original(self, limit)

    monkeypatch.setattr(Searcher, "measure", measure)
    judged = ("--method", "random_ws", "--method.candidates", "3", "--method.finalists", "2")
    outcome = searched(tmp_path / "run", *judged, "--epochs", "1", "--batch-size", "300")
    assert seen == [True]
    assert outcome.drawn and outcome.decisions == () and outcome.undecided == 0
    assert outcome.lead is not None and 0 <= outcome.lead < 0.5
    doubtful = any("is ahead of the next by" in sentence for sentence in outcome.warnings)
    spread = math.sqrt(outcome.discretised * (1 - outcome.discretised) / 630)
    assert doubtful == (outcome.lead < spread)
    text = ["--space", "recurrent", "--text.hidden", "8", "--batch-size", "16", "--data.sentences", "200"]
    assert parse(Search, [*text, "--epochs", "1", "--out", str(tmp_path / "text")]).execute() == 0
    words = read_outcome(tmp_path / "text")
    assert words.quality == "perplexity" and words.standard_error is None and len(words.decisions) == 8
    (size,) = words.sizes
    assert (size.channels, size.image_size) == (850, None) and size.macs > 0
