"""collect, select and report on a trained run."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import FORKED, exit_codes

from engine.command.cli import main, parse
from engine.config import parse_count
from engine.data.dataset import IndexedData, Split
from engine.errors import UserError
from engine.run import read_lines
from ofa.cost import costs_of
from ofa.space.arch import Arch, largest, smallest
from ofa.space.codes import sample_codes
from ofa.trained import TrainedSupernet
from ofa.tuned import selected_archs
from predictors.accuracy.pairs import read_pairs, read_selected
from predictors.collect import Collect, schedule
from predictors.report import Report
from predictors.select import Select


@pytest.fixture(scope="module")
def collected(trained_run: Path) -> Path:
    assert parse(Collect, ["--run", str(trained_run), "--count", "12"]).execute() == 0
    return trained_run


def select(run: Path, *flags: str) -> int:
    return parse(Select, ["--run", str(run), "--measure", "6", *flags]).execute()


def test_collect_resumes_and_grows(collected: Path) -> None:
    path = collected / "pairs.jsonl"
    first = path.read_text()
    path.write_text(first + '{"arch": {"resol')  # as a killed process leaves it
    assert parse(Collect, ["--run", str(collected), "--count", "15"]).execute() == 0
    grown = path.read_text()
    assert grown.startswith(first)
    pairs = read_pairs(collected)
    assert len({p.arch for p in pairs}) == len(pairs) == 15
    assert parse(Collect, ["--run", str(collected), "--count", "15"]).execute() == 0
    assert path.read_text() == grown


def test_half_of_the_schedule_is_spread_over_macs(trained_run: Path) -> None:
    trained = TrainedSupernet(trained_run, torch.device("cpu"))
    rows = np.stack(
        [row for row, _ in zip(schedule(trained.space, trained.macs, 0), range(82), strict=False)]
    )
    macs = costs_of(trained.space, rows, 10, 1).macs
    assert (
        macs[:2] == [trained.cost(smallest(trained.space))[0], trained.cost(largest(trained.space))[0]]
    ).all()
    uniform, stratified = macs[2::2], macs[3::2]
    assert np.ptp(np.histogram(stratified, 4, (macs.min(), macs.max()))[0]) < np.ptp(
        np.histogram(uniform, 4, (macs.min(), macs.max()))[0]
    )


@pytest.mark.slow
def test_select_keeps_the_budget_and_ranks_by_expectation(
    collected: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert select(collected, "--flops", "60k,0.1M") == 0
    out = capsys.readouterr().out
    assert "ridge (chosen)" in out
    # No line is broken where the output goes to a file.
    assert re.search(r"60k .* \d+\.\d% \(\d+\.\d to \d+\.\d\) .* \d+\.\d ± \d+\.\d% ", out)
    assert re.search(
        r"^100k gives \d+\.\d%, 60k \d+\.\d%: [\d.]+ points? for [\d.]+ times the MACs", out, re.M
    ) or re.search(
        r"^The subnet of 60k keeps|^100k \(\d+\.\d%\) and 60k .* cannot be told apart on \d+ ",
        out,
        re.M,
    )
    assert out.count(": half of it would give") + out.count("within half of it") == 2
    assert "cross-validation: " in out and "too few to tell" in out, "6 candidates"
    assert out.rstrip().endswith(f"next: python -m ofa.tune --run {collected}")
    for name, budget in (("60k", 60_000), ("100k", 100_000)):
        chosen = json.loads((collected / "selected" / f"{name}.json").read_text())
        assert chosen["constraints"] == [
            {"name": "macs", "limit": budget, "value": chosen["macs"], "unit": ""}
        ]
        assert chosen["macs"] <= budget
        assert len(chosen["candidates"]) >= 5 and all(c["macs"] <= budget for c in chosen["candidates"])
        ranked = [c["expected_accuracy"] for c in [chosen, *chosen["candidates"]]]
        assert ranked == sorted(ranked, reverse=True)
        low, high = chosen["expected_interval"]
        assert 0 <= low < chosen["expected_accuracy"] < high <= 1
        half = chosen["half"]
        assert half is None or (half["macs"] <= budget / 2 and half["expected_accuracy"] <= ranked[0])
        assert chosen["predicted_candidates"]["predictions"] == 6
        images = TrainedSupernet(collected, torch.device("cpu")).data.count("val")
        assert chosen["val_std"] == pytest.approx(
            (chosen["val_accuracy"] * (1 - chosen["val_accuracy"]) / images) ** 0.5
        )


@pytest.mark.slow
def test_a_budget_does_not_depend_on_others(collected: Path, tmp_path: Path) -> None:
    """Alone, beside others, and after others in either order: the same subnet and the same file."""
    written = []
    for i, commands in enumerate((["60k"], ["80k,60k"], ["80k", "60k"])):
        copy = tmp_path / str(i)
        shutil.copytree(collected, copy, ignore=shutil.ignore_patterns("selected", "optuna.journal"))
        for flops in commands:
            select(copy, "--flops", flops)
        written.append((copy / "selected" / "60k.json").read_text())
    assert written[0] == written[1] == written[2]


@pytest.mark.slow
def test_finalists_are_tuned_before_one_is_selected(
    collected: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert select(collected, "--flops", "70k,90k", "--tune-finalists", "2") == 0
    said = capsys.readouterr().out
    tried = r"\d\S+ MACs \d\S+% -> \d\S+%"
    line = re.search(rf"^70k: 1 epoch of tuning decided among {tried}.*, {tried}.*$", said, re.M)
    assert line is not None and line[0].count("(selected)") == 1
    for name in ("70k", "90k"):
        chosen = json.loads((collected / "selected" / f"{name}.json").read_text())
        finalists = chosen["finalists"]
        assert len(finalists) == 2 and all(f["macs"] <= int(name[:2]) * 1000 for f in finalists)
        # The two to expect most of, of which the best after tuning is selected.
        known = [c["expected_accuracy"] for c in chosen["candidates"]]
        assert min(f["expected_accuracy"] for f in finalists) >= max(known[2:], default=0)
        best = max(f["tuned_accuracy"] for f in finalists)
        selected = next(f for f in finalists if f["arch"] == chosen["arch"])
        assert selected["tuned_accuracy"] == best and selected["val_accuracy"] == chosen["val_accuracy"]


@pytest.mark.slow
def test_select_again_is_the_same(collected: Path) -> None:
    path = collected / "selected" / "80k.json"
    select(collected, "--flops", "80k")
    first = path.read_text()
    select(collected, "--flops", "80000")
    assert path.read_text() == first


@pytest.mark.slow
def test_a_budget_above_the_largest_says_so(collected: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert select(collected, "--flops", "600M") == 0
    assert "budget 600M is above the largest subnet" in capsys.readouterr().out
    assert (collected / "selected" / "600M.json").exists()


def test_a_budget_below_the_smallest_names_the_smallest(collected: Path) -> None:
    trained = TrainedSupernet(collected, torch.device("cpu"))
    least = trained.cost(smallest(trained.space))[0]
    with pytest.raises(
        UserError,
        match=f"No subnet of space 'tiny' keeps --flops 2k; the nearest .* is --flops {least / 1000}k",
    ):
        select(collected, "--flops", "2k")
    with pytest.raises(
        UserError, match=r"keeps --flops 100k --size 1kB; the nearest that one keeps is --size [\d.]+kB"
    ):
        select(collected, "--flops", "100k", "--size", "1kB")
    assert select(collected, "--flops", str(least)) == 0


@pytest.mark.slow
def test_the_next_line_of_a_front_selects_a_subnet(
    collected: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was ofa.tune, which found no selected subnet in the run."""
    copy = tmp_path / "run"
    shutil.copytree(collected, copy, ignore=shutil.ignore_patterns("selected", "optuna.journal"))
    assert select(copy, "--front", "macs") == 0
    next_line = capsys.readouterr().out.splitlines()[-1]
    flags = next_line.removeprefix("next: python -m predictors.select ").split()
    assert parse(Select, [*flags, "--measure", "4"]).execute() == 0
    ((_, chosen),) = read_selected(copy)
    assert chosen.macs <= int(flags[-1])
    assert capsys.readouterr().out.endswith(f"next: python -m ofa.tune --run {copy}\n")


def test_select_needs_pairs(train: object, tmp_path: Path, trained_run: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(trained_run, copy, ignore=shutil.ignore_patterns("pairs.jsonl"))
    with pytest.raises(
        UserError, match=r"Only 0 subnets are .*predictors\.collect with the same --run first"
    ):
        select(copy, "--flops", "1M")


@pytest.mark.slow
def test_report_compares_with_random_subnets_of_the_same_macs(collected: Path) -> None:
    select(collected, "--flops", "60k")
    assert parse(Report, ["--run", str(collected), "--random", "7"]).execute() == 0
    folder = collected / "report"
    assert (folder / "front.png").read_bytes().startswith(b"\x89PNG")
    lines = (folder / "front.csv").read_text().splitlines()
    assert lines[0] == "budget,kind,macs,params,test_accuracy"
    rows = [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]
    trained = TrainedSupernet(collected, torch.device("cpu"))
    everything = np.unique(
        sample_codes(trained.space, 50_000, np.random.default_rng(0)), axis=0
    )  # all 256 of them
    macs = np.sort(costs_of(trained.space, everything, 10, 1).macs)
    for summary in json.loads((folder / "report.json").read_text())["subnets"][1:-1]:
        distances = sorted(
            abs(int(r["macs"]) / summary["macs"] - 1)
            for r in rows
            if r["budget"] == summary["budget"] and r["kind"] == "random"
        )
        possible = np.sort(np.abs(macs / summary["macs"] - 1))[1:]  # without the chosen one
        # All that there are within 5%, and no others.
        assert len(distances) == summary["random_count"] == min(7, int((possible <= 0.05).sum()))
        assert all(distance <= 0.05 for distance in distances)
        if len(distances) < 5:
            assert summary["random_median"] is summary["random_beaten"] is None
        else:
            assert distances[-1] == pytest.approx(summary["random_macs_apart"])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"accuracy": 1}, r"line 1: there is no field 'accuracy'; did you mean 'val_accuracy'"),
        ({"val_accuracy": 70}, r"line 1: 'val_accuracy' = 70 is not valid"),
        ({"val_accuracy": float("nan")}, r"line 1: 'val_accuracy' = nan is not valid"),
    ],
)
def test_damaged_pairs_are_named(collected: Path, tmp_path: Path, line: dict[str, float], said: str) -> None:
    copy = tmp_path / "run"
    shutil.copytree(collected, copy)
    rows = read_lines(copy / "pairs.jsonl")
    (copy / "pairs.jsonl").write_text(json.dumps(rows[0] | line) + "\n")
    with pytest.raises(UserError, match=said):
        select(copy, "--flops", "1M")


def test_pairs_of_another_space_are_refused(collected: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(collected, copy)
    text = (copy / "pairs.jsonl").read_text().replace('"resolution": 12', '"resolution": 14')
    (copy / "pairs.jsonl").write_text(text)
    with pytest.raises(UserError, match="resolution = 14 is not in space 'tiny'"):
        select(copy, "--flops", "1M")


def test_damaged_selections_and_journals_are_named(collected: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(collected, copy)
    shutil.rmtree(copy / "selected", ignore_errors=True)
    (copy / "selected").mkdir()
    (copy / "selected" / "1M.json").write_text("{}")
    with pytest.raises(UserError, match=r"1M\.json: 'arch' is missing"):
        parse(Report, ["--run", str(copy)]).execute()
    (copy / "optuna.journal").write_text('{"op_code":\n{}\n')
    with pytest.raises(UserError, match=r"optuna\.journal' is damaged; delete it"):
        select(copy, "--flops", "1M")


@pytest.mark.slow
def test_only_the_report_looks_at_test_images(collected: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    original = IndexedData.batches

    def spy(self: IndexedData, split: Split, batch_size: int, limit: int | None = None) -> object:
        seen.append(split if limit is None else f"{split} for statistics")
        return original(self, split, batch_size, limit)

    monkeypatch.setattr(IndexedData, "batches", spy)
    parse(Collect, ["--run", str(collected), "--count", "16"]).execute()
    select(collected, "--flops", "70k")
    assert set(seen) == {"train for statistics", "val"}
    seen.clear()
    parse(Report, ["--run", str(collected), "--random", "1"]).execute()
    assert set(seen) == {"train for statistics", "test"}


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_measured(collected: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(collected, copy, ignore=shutil.ignore_patterns("selected", "optuna.journal"))
    words = [
        "-u",
        "-m",
        "predictors.select",
        "--run",
        str(copy),
        "--flops",
        "60k,80k",
        "--measure",
        "200",
        "--device",
        "cpu",
    ]
    process = subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()  # the predictor is fitted
    while (
        not (copy / "optuna.journal").exists()
        or (copy / "optuna.journal").read_text().count('"values":[') < 3
    ):
        time.sleep(0.05)
    for _ in range(20):
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.split() == ["interrupted"]
    assert not (copy / "selected").exists()
    known = (copy / "optuna.journal").read_text().count('"values":[')
    assert select(copy, "--flops", "60k,80k") == 0
    assert (copy / "optuna.journal").read_text().count('"values":[') > known


@pytest.mark.slow
def test_limits_of_any_kind_together(collected: Path) -> None:
    assert select(collected, "--flops", "60k,100k", "--size", "30kB", "--params", "6k") == 0
    trained = TrainedSupernet(collected, torch.device("cpu"))
    for name, budget in (("60k-size30kB-params6k", 60_000), ("100k-size30kB-params6k", 100_000)):
        chosen = json.loads((collected / "selected" / f"{name}.json").read_text())
        assert [(c["name"], c["limit"], c["unit"]) for c in chosen["constraints"]] == [
            ("macs", budget, ""),
            ("size", 30_000, "B"),
            ("params", 6_000, ""),
        ]
        assert all(c["value"] <= c["limit"] for c in chosen["constraints"])
        arch = Arch.model_validate(chosen["arch"])
        assert (chosen["macs"], chosen["params"]) == trained.cost(arch)
        assert name in dict(read_selected(collected))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--latency", "15ms"], "name its table with --latency-table"),
        (["--front", "latency"], "name its table with --latency-table"),
        (
            ["--front", "flops"],
            "--front has no cost 'flops'; valid are: latency, macs, memory, params, size.",
        ),
        (["--front", "mac"], "--front has no cost 'mac'; did you mean 'macs'?"),
        (["--latency", "15 minutes"], "'15 minutes' is not a latency; write it as 15ms"),
        (["--size", "20ms"], "'20ms' is not a number of bytes; write it as 20MB"),
        (["--flops", "many"], "'many' is not a count"),
        (["--flops", "-5M"], "command line: --flops: '-5M' is not a count"),
        (["--flops", "0"], "0 is no budget: nothing costs less than 1"),
        (["--flops", "1e30"], "is too large for a count"),
        (["--flops", "inf"], "command line: --flops: 'inf' is not a count; write it as 600M"),
        (["--flops", "nan"], "command line: --flops: 'nan' is not a count"),
        (["--flops", "1M,1000k"], "--flops has the budget 1M twice; give it once"),
        (["--front", "macs,params,macs"], "--front names 'macs' twice; name each cost once"),
        (["--params", "-1"], "'-1' is not a count"),
        (["--size", "-1MB"], "'-1MB' is not a number of bytes"),
        (["--memory", "1e305GB"], "'1e305GB' is not a number of bytes"),
        (["--latency", "-inf"], "'-inf' is not a latency"),
    ],
)
def test_mistakes_are_one_sentence(flags: list[str], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)) as complaint:
        parse(Select, flags)
    assert not str(complaint.value).endswith("?.")


def test_an_example_of_a_budget_is_in_the_space(trained_run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(trained_run, tmp_path / "run", ignore=shutil.ignore_patterns("selected"))
    trained = TrainedSupernet(copy, torch.device("cpu"))
    least, most = (trained.cost(arch)[0] for arch in (smallest(trained.space), largest(trained.space)))
    of_names = partial(selected_archs, copy, trained.space, "all")
    for command in (partial(select, copy), of_names, partial(read_selected, copy)):
        with pytest.raises(UserError, match=" --flops ") as complaint:
            command()
        said = re.search(r" --flops ([^ ,]+)", str(complaint.value))
        assert said and least < parse_count(said[1]) < most


@pytest.mark.slow
@pytest.mark.parametrize("address", ["{}/shared.journal", "sqlite:///{}/shared.db"])
def test_two_processes_share_measurements_and_choose_the_same(
    collected: Path, tmp_path: Path, address: str
) -> None:
    """Two processes with one command and one database: each can use what the other measured, and both end
    with the same choice."""
    copies = [tmp_path / name for name in ("one", "two")]
    for copy in copies:
        shutil.copytree(collected, copy, ignore=shutil.ignore_patterns("selected", "optuna.journal"))
    storage = address.format(tmp_path)
    words = ["--flops", "60k", "--measure", "15", "--device", "cpu", "--threads", "1", "--storage", storage]
    selects = [(Select, [*words, "--run", str(copy)]) for copy in copies]
    processes = [FORKED.Process(target=main, args=words, daemon=True) for words in selects]
    for process in processes:
        process.start()
    assert exit_codes(processes) == [0, 0]
    # Again, since the one that ended first had not seen the other's last measurements.
    assert parse(*selects[0]).execute() == 0
    again = FORKED.Process(target=main, args=selects[1], daemon=True)
    again.start()
    assert exit_codes([again]) == [0]
    first, second = (json.loads((copy / "selected" / "60k.json").read_text()) for copy in copies)
    assert first["arch"] == second["arch"] and first["candidates"] == second["candidates"]
    assert not (copies[0] / "optuna.journal").exists()
