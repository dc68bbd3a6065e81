"""Quiet for converters that print about themselves."""

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Suppress what converters print, log and warn of.

    They report their own steps, none of which a user can act on, and name files of this machine.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def silent_native() -> Iterator[None]:
    """Suppress also what libraries write past Python to the process's outputs."""
    with silent(), open(os.devnull, "w") as nowhere:
        sys.stderr.flush()
        before = [os.dup(1), os.dup(2)]
        try:
            for number in (1, 2):
                os.dup2(nowhere.fileno(), number)
            yield
        finally:
            for number, old in enumerate(before, 1):
                os.dup2(old, number)
                os.close(old)
