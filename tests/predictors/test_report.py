"""The page of a report on a trained run: complete, self-contained, well formed, safe with any names, and
visible in a real browser."""

import csv
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from made_up_latency import partial_device, written_table

from engine.command.cli import parse
from engine.plot.canvas import safe
from ofa.space.arch import Arch, largest
from ofa.space.codes import encode
from ofa.space.space import Space
from predictors.collect import Collect
from predictors.latency.model import LatencyModel
from predictors.report import Report
from predictors.select import Select

HOSTILE = '<script>alert("1")</script> & $x^2$'
OUTSIDE = re.compile(
    r"https?:|//|url\(|@import|<script|<link|<img|<iframe|\b(?:src|href|srcset|data|action)\s*=", re.I
)


@pytest.fixture(scope="module")
def run(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 pairs, choices of two commands (the second one after the first), one of which has a name that HTML
    must not see."""
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
    assert parse(Report, ["--run", str(copy), "--random", "3"]).execute() == 0
    return copy


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
    assert text.count("Other candidates for") == 3


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
    assert [row["kind"] for row in front].count("selected") == 3 and [row["kind"] for row in front].count(
        "random"
    ) == 9
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
    assert {summary["budget"] for summary in json.loads((folder / "report.json").read_text())} == set(
        names(run)
    )


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


def browser() -> str:
    found = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
    )
    if found is None:
        pytest.skip("no chromium, google-chrome or chrome on PATH to render the page in")
    return found


PROBE = """<script>
addEventListener("load", () => {
  const sizes = [...document.querySelectorAll("svg[role=img]")].map(svg => {
    const box = svg.getBoundingClientRect(), marks = [...svg.querySelectorAll("path,circle,text")]
        .map(m => m.getBoundingClientRect());
    const outside = marks.filter(m => m.left < box.left - 1 || m.right > box.right + 1
        || m.top < box.top - 1 || m.bottom > box.bottom + 1);
    return [Math.round(box.width), Math.round(box.height), marks.length, outside.length].join(" ");
  });
  const wide = document.documentElement.scrollWidth > innerWidth;
  document.documentElement.setAttribute("data-seen", sizes.join(",") + ";" + wide);
});</script>"""


@pytest.mark.parametrize("width", [1200, 500])
def test_a_real_browser_draws_it(page: str, tmp_path: Path, width: int) -> None:
    """Every picture has a size and marks, none of them sticks out, and the page itself does not scroll
    sideways."""
    probe = tmp_path / "page.html"
    probe.write_text(page.replace("</head>", PROBE + "</head>"), encoding="utf-8")
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
    ]
    flags += [
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--window-size={width},1000",
    ]
    words = [browser(), *flags, "--dump-dom", probe.as_uri()]
    dom = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True).stdout
    seen = re.search(r'data-seen="([^"]*)"', dom)
    assert seen is not None, dom[:2000]
    sizes, wide = seen[1].split(";")
    charts = [tuple(map(int, size.split())) for size in sizes.split(",")]
    assert len(charts) == page.count('role="img"') >= 4
    for across, down, marks, outside in charts:
        assert across > 300 and down > 150 and marks > 10 and outside == 0
    assert wide == "false"
