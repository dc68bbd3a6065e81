"""stdout and stderr without a reader, without a letter, or not there at all."""

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.command.outputs import _ignore, _lasting


@contextlib.contextmanager
def lasting(file: int, encoding: str = "utf-8") -> Iterator[tuple[io.TextIOWrapper, list[str]]]:
    """A stream to a file descriptor, and what it told; Python's own streams are made like the inner one."""
    told: list[str] = []
    with io.TextIOWrapper(io.BufferedWriter(io.FileIO(file, "w")), encoding=encoding) as inner:
        stream = _lasting(inner, lambda: told.append("gone"))
        assert isinstance(stream, io.TextIOWrapper)
        yield stream, told


def test_what_nobody_reads_is_dropped_and_told_once() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with lasting(writing) as (stream, told):
        for _ in range(3):
            print("x" * 100_000, file=stream, flush=True)
        assert told == ["gone"]
        assert not stream.isatty()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has this device, which is always full")
def test_a_log_on_a_full_disk_ends_nothing() -> None:
    with lasting(os.open("/dev/full", os.O_WRONLY)) as (stream, told):
        print("x", file=stream, flush=True)
        assert told == ["gone"]


@pytest.mark.parametrize(
    ("encoding", "text", "written"),
    [
        ("ascii", "9 ±1 数", b"9 ?1 ?"),
        ("latin-1", "9 ±1 数", b"9 \xb11 ?"),
        ("utf-8", "9 ±1 数", "9 ±1 数".encode()),
        ("utf-8", os.fsdecode(b"a\xff"), b"a\\udcff"),  # the name of a file that is no text
    ],
)
def test_every_letter_is_printed_somehow(tmp_path: Path, encoding: str, text: str, written: bytes) -> None:
    with lasting(os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT), encoding) as (stream, _):
        print(text, end="", file=stream, flush=True)
    assert (tmp_path / "log").read_bytes() == written


def test_a_closed_stream_takes_prints() -> None:
    with _lasting(None, _ignore) as stream:
        print("x", file=stream, flush=True)


def test_a_stream_of_another_program_stays() -> None:
    notebook = io.StringIO()
    assert _lasting(notebook, _ignore) is notebook
