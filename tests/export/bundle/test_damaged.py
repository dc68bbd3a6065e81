"""Whatever is wrong with the files of a run, `bundle` says it in a sentence and leaves the old bundle."""

import contextlib
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from engine.command.cli import parse
from engine.errors import UserError
from export.bundle.__main__ import MakeBundle

FILES = (
    *("env.json", "config.yaml", "selected/60k.json", "export/60k.json", "export/60k.ort.json"),
    *("export/benchmark.csv", "DONE"),
)


@pytest.fixture
def run(bundled_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundled_run, tmp_path / "run"))


def bundle(run: Path) -> int:
    return parse(MakeBundle, ["--run", str(run), "--selected", "60k"]).execute()


def _without(value: Any, path: tuple[Any, ...], instead: Any) -> Any:
    """`value` with another entry at `path`, or without it."""
    first, *rest = path
    copy = dict(value)
    if rest:
        copy[first] = _without(value[first], tuple(rest), instead)
    elif instead is None:
        del copy[first]
    else:
        copy[first] = instead
    return copy


@pytest.mark.parametrize("instead", [None, 3, "x", [1], {"a": 1}, float("nan")])
def test_entries_that_are_missing_or_of_another_kind(run: Path, instead: Any) -> None:
    for name in FILES:
        path = run / name
        if path.suffix != ".json" or not path.exists():
            continue
        whole = path.read_bytes()
        values = json.loads(whole)
        places = [(key,) for key in values]
        for key in ("input", "output", "preprocessing", "parity", "accuracy", "architecture"):
            if isinstance(values.get(key), dict):
                places += [(key, inner) for inner in values[key]]
        for place in places:
            path.write_text(json.dumps(_without(values, place, instead)))
            _bundles_or_complains(run)
        path.write_bytes(whole)
    assert bundle(run) == 0


def test_files_that_are_cut_or_have_other_bytes(run: Path) -> None:
    rng = random.Random(0)
    for name in FILES:
        path = run / name
        if not path.exists() or not path.stat().st_size:
            continue
        whole = path.read_bytes()
        for _ in range(8):
            place = rng.randrange(len(whole))
            for content in (whole[:place], whole[:place] + bytes([rng.randrange(256)]) + whole[place + 1 :]):
                path.write_bytes(content)
                _bundles_or_complains(run)
        path.write_bytes(whole)
    assert bundle(run) == 0


def _bundles_or_complains(run: Path) -> None:
    with contextlib.suppress(UserError):
        assert bundle(run) == 0
