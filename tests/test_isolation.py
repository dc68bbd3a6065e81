"""No test reads or writes the folder in which pytest was started."""

from pathlib import Path

import pytest


def test_a_test_starts_in_an_empty_folder_of_its_own(request: pytest.FixtureRequest) -> None:
    assert Path.cwd() != request.config.invocation_params.dir
    assert not list(Path.cwd().iterdir())
    Path("left-behind").touch()


def test_what_another_test_left_is_not_here(request: pytest.FixtureRequest) -> None:
    assert not list(Path.cwd().iterdir())
    assert not (request.config.invocation_params.dir / "left-behind").exists()
