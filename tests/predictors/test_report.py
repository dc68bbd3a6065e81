"""The page of a report on a trained run: complete, self-contained, well formed, safe with any names, and
visible in a real browser."""

import csv
import io
import json
import re
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from browser import Browser
from made_up_latency import partial_device, written_table

from engine.command.cli import parse
from engine.plot.canvas import safe
from ofa.space.arch import Arch, largest
from ofa.space.codes import encode
from ofa.space.space import Space
from ofa.trained import TrainedSupernet
from predictors.collect import Collect
from predictors.latency.model import LatencyModel
from predictors.report import Report
from predictors.select import Select

HOSTILE = '<script>alert("1")</script> & $x^2$'
PRINTED = "printed.txt"  # in the run of these tests: what the report printed
OUTSIDE = re.compile(
    r"https?:|//|url\(|@import|<script|<link|<img|<iframe|\b(?:src|href|srcset|data|action)\s*=", re.I
)


@pytest.fixture(scope="module")
def run(trained_run: Path, tmp_path_factory: pytest.TempPathFactory, pair: Callable[..., list[str]]) -> Path:
    """A run with 30 pairs and choices of two commands, reported by two ranks.

    The second command came after the first; one choice has a name that HTML must not see.
    """
    copy = tmp_path_factory.mktemp("report") / "a&b <run>"
    shutil.copytree(
        trained_run, copy, ignore=shutil.ignore_patterns("selected", "optuna.journal", "report", "export")
    )
    assert parse(Collect, ["--run", str(copy), "--count", "30"]).execute() == 0
    assert (
        parse(
            Select, ["--run", str(copy), "--measure", "5", "--flops", "100k,60k", "--front", "macs"]
        ).execute()
        == 0
    )
    assert (
        parse(Select, ["--run", str(copy), "--measure", "5", "--flops", "80k", "--params", "6k"]).execute()
        == 0
    )
    (copy / "selected" / "100k.json").rename(copy / "selected" / f"{HOSTILE.replace('/', '')}.json")
    printed, nothing = pair(_reported, copy)
    assert nothing == ""
    (copy / PRINTED).write_text(printed)
    return copy


def _reported(run: Path) -> str:
    """What a rank prints while it reports."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        assert parse(Report, ["--run", str(run), "--random", "6", "--device", "cpu"]).execute() == 0
    return printed.getvalue()


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return (run / "report" / "report.html").read_text(encoding="utf-8")


def names(run: Path) -> list[str]:
    return [file.stem for file in (run / "selected").glob("*.json") if file.name != "front.json"]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class Balanced(HTMLParser):
    """What a parser of HTML sees: every element closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_well_formed_as_xml_and_as_html(page: str) -> None:
    root = ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>"))
    assert root.tag == "html" and root.get("lang") == "en"
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert not any(len(table) == 0 for table in root.iter("tbody"))


def test_page_needs_nothing_from_outside(page: str) -> None:
    assert OUTSIDE.findall(page) == []


def test_page_has_every_choice_and_every_picture(run: Path, page: str) -> None:
    root = ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>"))
    table = next(root.iter("table"))
    listed = [row[0].text for row in table.iter("tr")][1:]
    assert listed[0] == "smallest" and listed[-1] == "largest"
    listed = listed[1:-1]
    assert listed == ["60k", "80k-params6k", HOSTILE.replace("/", "")], "in the order of the budgets"
    assert set(listed) == set(names(run))
    headings = ", ".join("".join(h.itertext()) for h in root.iter("h3"))
    assert all(name in headings for name in listed)
    for title in (
        "Test accuracy against MACs",
        "Validation accuracy against MACs",
        "Predicted against measured accuracy",
    ):
        assert title in headings
        assert f'aria-label="{title}"' in page
    text = "".join(root.itertext())
    assert "--flops 80k --params 6k" in text and "search from 30 pairs, seed 0" in text
    assert "multiply-accumulates" in text and "600M is 600 million" in text
    assert "latency" not in text, "nobody named a device"
    assert "exported" not in text.lower(), "nothing was exported"
    assert text.count("Other candidates for") == 3
    halves = ("Half of the budget would give", "It keeps half of its limits", "within half of the budget")
    assert sum(map(text.count, halves)) >= 1
    assert "expected" in [cell.text for cell in table.iter("th")]


def test_names_from_files_are_text(page: str) -> None:
    assert "<script" not in page and "alert(" in page and "a&amp;b &lt;run&gt;" in page
    assert safe("a\x00\x1b\ud800\U0001f600<") == "a\ufffd\ufffd\ufffd\U0001f600&lt;"


def test_tables_and_pictures_lie_beside_the_page(run: Path) -> None:
    folder = run / "report"
    for name in ("front", "validation", "predictor", "architectures"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    for budget in names(run):
        assert (folder / f"confusion_{budget}.png").read_bytes().startswith(b"\x89PNG")
        confusion = rows(folder / f"confusion_{budget}.csv")
        assert [row.pop("true class") for row in confusion] == [str(digit) for digit in range(10)]
        assert sum(int(count) for row in confusion for count in row.values()) == 539, "all test images"
    front = rows(folder / "front.csv")
    kinds = [row["kind"] for row in front]
    report = json.loads((folder / "report.json").read_text())
    assert kinds.count("selected") == 3
    assert kinds.count("random") == sum(subnet["random_count"] for subnet in report["subnets"])
    assert {row["kind"] for row in front if not row["budget"]} == {"smallest", "largest"}
    known = rows(folder / "validation.csv")
    assert len({tuple(row[field] for field in Arch.model_fields) for row in known}) == len(known) >= 30
    assert {"smallest", "collected", "selected"} <= {row["kind"] for row in known}
    judged = rows(folder / "predictor.csv")
    assert len(judged) == 30
    assert all(
        (row["inside"] == "True") == (float(row["low"]) <= float(row["val_accuracy"]) <= float(row["high"]))
        for row in judged
    )
    chosen = {row["budget"]: row for row in rows(folder / "architectures.csv")}
    assert set(chosen) == set(names(run))
    for name, row in chosen.items():
        facts = json.loads((run / "selected" / f"{name}.json").read_text())
        assert (row["macs"], row["depth"]) == (str(facts["macs"]), "-".join(map(str, facts["arch"]["depth"])))
    subnets = json.loads((folder / "report.json").read_text())["subnets"]
    assert {subnet["budget"] for subnet in subnets} == {*names(run), "smallest", "largest"}


@pytest.mark.slow
def test_latency_of_a_device_adds_pictures(run: Path, tiny: Space, tmp_path: Path) -> None:
    """The table knows one of two resolutions: subnets of the other have no latency, and no point."""
    table = partial_device(tiny)
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    words = ["--run", str(copy), "--random", "1", "--latency-table", written_table(table, tmp_path)]
    assert parse(Report, words).execute() == 0
    page = (copy / "report" / "report.html").read_text(encoding="utf-8")
    assert "Test accuracy against latency" in page and "Validation accuracy against latency" in page
    latency = LatencyModel(table, tiny)
    known = latency.predict(encode(tiny, largest(tiny))[None])[0]
    found = {row["kind"]: row["latency_ms"] for row in rows(copy / "report" / "front_latency.csv")}
    assert float(found["largest"]) == pytest.approx(known)
    assert not found.get("smallest")
    assert "inf" not in (copy / "report" / "validation_latency.csv").read_text()


@pytest.mark.slow
def test_few_pairs_and_old_files_are_reported_too(run: Path, tmp_path: Path) -> None:
    """No pairs to judge a predictor with; a file that says no more than a subnet and its accuracy."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("pairs.jsonl", "selected", "report"))
    facts = json.loads((run / "selected" / "60k.json").read_text())
    (copy / "selected").mkdir()
    (copy / "selected" / "old.json").write_text(
        json.dumps({name: facts[name] for name in ("arch", "macs", "val_accuracy")})
    )
    assert parse(Report, ["--run", str(copy), "--random", "1"]).execute() == 0
    page = (copy / "report" / "report.html").read_text(encoding="utf-8")
    ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>"))
    assert "0 subnets are collected; from 20 on" in page
    assert not (copy / "report" / "predictor.png").exists()


def test_page_files_and_print_say_the_same(run: Path, page: str) -> None:
    """Each figure of report.json is in report.csv, in the table of the page, and printed."""
    said = (run / PRINTED).read_text()
    report = json.loads((run / "report" / "report.json").read_text())
    listed = rows(run / "report" / "report.csv")
    root = ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>"))
    table = next(root.iter("table"))
    heads = ["".join(cell.itertext()) for cell in next(table.iter("tr"))]
    shown = [dict(zip(heads, row, strict=True)) for row in list(table.iter("tr"))[1:]]
    assert len(report["subnets"]) == len(listed) == len(shown) == 5
    for subnet, line, cells in zip(report["subnets"], listed, shown, strict=True):
        assert {key: str(subnet[key]) for key in line if line[key]} == {k: v for k, v in line.items() if v}
        (printed,) = [row for row in said.splitlines() if row.startswith(f"│ {subnet['budget']} ")]
        for key, head in (
            ("test_accuracy", "test"),
            ("val_accuracy", "validation"),
            ("random_median", "random (test)"),
        ):
            if subnet[key] is None:
                assert cells[head].text == "–"
            else:
                assert cells[head].text == f"{100 * subnet[key]:.1f}%" and f"{subnet[key]:.2%}" in printed
        if subnet["random_beaten"] is not None:
            beats = f"{subnet['random_beaten']} of {subnet['random_count']}"
            assert cells["beats"].text == beats and beats in printed
    sentences = ["".join(item.itertext()) for item in root.iter("li")]
    assert sentences == report["headlines"] and len(sentences) == 3
    assert all(sentence in said.splitlines() for sentence in sentences)
    assert any(subnet["random_median"] is not None for subnet in report["subnets"])


LOOK = """(() => {
  const root = document.documentElement, width = innerWidth, found = [];
  if (root.scrollWidth > root.clientWidth) found.push("the page scrolls sideways: " + root.scrollWidth);
  for (const element of document.querySelectorAll("main *")) {
    const box = element.getBoundingClientRect();
    if (!box.width || element.closest("details:not([open])")) continue;
    const name = element.tagName + " " + element.textContent.trim().slice(0, 40);
    if (box.left < -1 || box.right > width + 1) found.push("outside: " + name);
    if (!element.closest("svg") && element.scrollWidth > element.clientWidth + 1
        && getComputedStyle(element).display != "inline") found.push("cut: " + name);
  }
  for (const svg of document.querySelectorAll("svg[role=img]")) {
    const box = svg.getBoundingClientRect(), marks = [...svg.querySelectorAll("path,circle,text")];
    if (box.width < 300 || box.height < 100 || marks.length < 10) found.push("small: " + svg.ariaLabel);
    for (const mark of marks) {
      const m = mark.getBoundingClientRect();
      const wide = m.left < box.left - 1 || m.right > box.right + 1;
      if (wide || m.top < box.top - 1 || m.bottom > box.bottom + 1)
        found.push("sticks out of " + svg.ariaLabel + ": " + mark.textContent);
      if (mark.tagName == "text" && m.height < 9) found.push("tiny: " + mark.textContent);
    }
  }
  return found.join("\\n");
})()"""


@pytest.mark.slow
def test_a_real_browser_shows_all_of_it_at_any_width(page: str, tmp_path: Path) -> None:
    """Nothing is cut, scrolls sideways, sticks out of its picture or is too small to read."""
    file = tmp_path / "page.html"
    file.write_text(page, encoding="utf-8")
    with Browser(tmp_path / "profile") as browser:
        for width in (400, 600, 800, 1000, 1280):
            size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
            browser.ask("Emulation.setDeviceMetricsOverride", **size)
            browser.ask("Page.navigate", url=file.as_uri())
            assert browser.wait("document.readyState == 'complete' && location.protocol == 'file:'")
            assert (
                browser.run("document.querySelectorAll('svg[role=img]').length")
                == page.count('role="img"')
                >= 4
            )
            assert browser.run(LOOK) == "", f"at {width} pixels"


def test_what_two_ranks_measured_is_what_one_process_measures(run: Path) -> None:
    trained = TrainedSupernet(run, torch.device("cpu"))
    reported = [row for row in rows(run / "report" / "report.csv") if row["kind"] == "selected"]
    assert len(reported) == 3
    for row in reported:
        arch = Arch.model_validate(
            json.loads((run / "selected" / f"{row['budget']}.json").read_text())["arch"]
        )
        assert float(row["test_accuracy"]) == trained.accuracy(arch, "test")
