"""What tests run in a forked process is what they run in their own."""

import sys

import pytest
from forked import FORKED, PRELOADED

import ofa


def _found() -> tuple[str | None, list[str]]:
    return ofa.__file__, [name for name in PRELOADED if name not in sys.modules]


@pytest.mark.slow
def test_a_forked_process_has_the_packages_of_this_one() -> None:
    with FORKED.Pool(1) as pool:
        file, missing = pool.apply(_found)
    assert file == ofa.__file__
    assert missing == [], "a fork server says nothing of what it cannot import"
