"""`import predictors` as a library: the example of its docstring, and what the import costs."""

import subprocess
import sys
import textwrap
from typing import Any

import pytest

import predictors
from ofa.space.codes import decode

HEAVY = ("torch", "sklearn", "scipy", "optuna", "onnx", "matplotlib")


def example() -> str:
    """The indented lines of the package's docstring."""
    assert predictors.__doc__ is not None
    lines = [line for line in predictors.__doc__.splitlines() if not line or line.startswith("    ")]
    return textwrap.dedent("\n".join(lines))


def test_the_example_finds_the_best_architecture(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    exec(example(), names)
    best, codes, score, macs = names["best"], names["codes"], names["score"], names["macs"]
    assert str(decode(names["space"], best[0])) == capsys.readouterr().out.strip()
    assert (macs(best) <= 300_000).all()
    allowed = codes[macs(codes) <= 300_000]
    assert len(allowed) > 0
    assert score(best[:1])[0] >= score(allowed).max() - 1e-9


def test_every_public_name_is_there() -> None:
    for name in predictors.__all__:
        assert getattr(predictors, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'find_worst'"):
        predictors.find_worst  # noqa: B018


def test_the_import_is_light() -> None:
    code = "import sys, predictors; print([m for m in sys.argv[1:] if m in sys.modules])"
    words = [sys.executable, "-c", code, *HEAVY]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip() == "[]"
