"""What the documents name is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
# The log tells what was so when it was written.
PAGES = [page for page in PAGES if page.name != "log.md"]
OURS = r"(?:engine|ofa|oneshot|predictors|export|configs|benchmarks|tests|docs|examples)"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_and_links_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in re.findall(rf"`({OURS}/[\w/.-]+(?:\.py|\.yaml|\.md|\.ipynb|/))`", text):
        # Not x.py, which stands for a file of yours, nor a folder of a run.
        if "/x." not in name and not re.match(r"export/\d", name):
            assert (ROOT / name).exists(), f"{page.name} names {name}"
    for link in re.findall(r"\]\(([^)#]+)(?:#[\w-]+)?\)", text):
        if "://" not in link:
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_modules_that_are_named_exist(page: Path) -> None:
    for name in re.findall(r"python -m ([\w.]+)", page.read_text(encoding="utf-8")):
        path = ROOT / name.replace(".", "/")
        if name.split(".")[0] in ("engine", "ofa", "oneshot", "predictors", "export"):
            assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), f"{page.name}: {name}"
