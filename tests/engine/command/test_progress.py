"""Plain progress lines: rare, with rate, time left and the latest note."""

import pytest

from engine.command import progress as module


def test_plain_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter([0.0] + [2.0 * i for i in range(1, 31)])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with module.progress("train", 40, done=10) as advance:
        for step in range(11, 41):
            advance(f"loss {step}" if step == 12 else "")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "train 15/40  0.5/s  50 s left  loss 12"
    assert lines[-1] == "train 40/40  0.5/s  0 s left  loss 12"
    assert len(lines) == 6


def test_short_work_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with module.progress("measure", 3) as advance:
        for _ in range(3):
            advance("")
    assert capsys.readouterr().err == ""
