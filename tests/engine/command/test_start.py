"""How a command line is written into files."""

import os
import signal
import sys

import pytest

from engine.command.start import command_line, prepare, without_password


def test_passwords_are_masked() -> None:
    masked = without_password("postgresql://me:a@b:c@db:5432/studies")
    assert masked == "postgresql://me:***@db:5432/studies"
    assert (
        without_password("mysql://db/x?user=me&password=s3&ssl=1")
        == "mysql://db/x?user=me&password=***&ssl=1"
    )
    assert without_password("sqlite:///studies.db") == "sqlite:///studies.db"


@pytest.mark.parametrize(
    "words", [["--storage", "mysql://me:secret@db/x"], ["--storage=mysql://me:secret@db/x"]]
)
def test_the_command_line_in_files_has_no_password(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    typed = ["-m", "predictors.select", "--flops", "600M", *words]
    monkeypatch.setattr(sys, "orig_argv", ["/usr/bin/python", *typed])
    monkeypatch.setattr(sys, "argv", ["select.py", *typed[2:]])
    assert command_line().startswith("python -m predictors.select --flops 600M")
    assert "secret" not in command_line() and "me:***@db/x" in command_line()


@pytest.mark.parametrize(
    ("module", "given", "wanted"),
    [
        ("ofa.train", {}, "expandable_segments:True"),
        ("ofa.tune", {}, "expandable_segments:True"),
        ("ofa.evaluate", {}, "expandable_segments:True"),
        ("predictors.collect", {}, "expandable_segments:True"),
        ("predictors.report", {}, "expandable_segments:True"),
        ("ofa.train", {"PYTORCH_ALLOC_CONF": "backend:native"}, "backend:native"),
        # The older name of the same variable.
        ("ofa.train", {"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}, None),
        ("oneshot.search", {}, None),
    ],
)
def test_memory_of_a_gpu_grows_where_shapes_change(
    module: str, given: dict[str, str], wanted: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF"):
        monkeypatch.setenv(name, "")  # so that what `prepare` sets is undone
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    prepare(module, [])
    assert os.environ.get("PYTORCH_ALLOC_CONF") == wanted
