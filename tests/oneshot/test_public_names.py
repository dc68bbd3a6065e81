"""What a notebook gets from `import oneshot`: names on first use, and an example that works."""

import ast
import subprocess
import sys
import textwrap

import pytest
import torch

import oneshot


def test_the_example_of_the_package_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert oneshot.__doc__ is not None
    lines = [line for line in oneshot.__doc__.splitlines() if line.startswith("    ")]
    found: dict[str, object] = {}
    exec(textwrap.dedent("\n".join(lines)), found)  # it is our own docstring
    logits = found["logits"]
    assert isinstance(logits, torch.Tensor) and logits.shape == (1, 10)
    printed = next(line for line in lines if "print(" in line)
    assert ast.literal_eval(capsys.readouterr().out) == ast.literal_eval(printed.split("# ")[1])


def test_every_public_name_is_there() -> None:
    for name in oneshot.__all__:
        assert getattr(oneshot, name).__name__ == name
    with pytest.raises(AttributeError, match="module 'oneshot' has no attribute 'nothing'"):
        oneshot.nothing  # noqa: B018


def test_the_import_alone_is_cheap() -> None:
    code = "import sys, oneshot; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
