"""Errors a person can act on. The command line prints them as one sentence and exits 2."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """Something that the user gave is wrong.

    The message is one sentence that says what is wrong, the value, the choices and the remedy.
    """


class WorkerDied(UserError):
    """A worker process that prepares images ended before its work was done."""


class Diverged(UserError):
    """A loss or a weight of a training is no longer finite."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """The end of a sentence about an unknown `word`: the choice most like it, or else all choices."""
    known = sorted(choices)
    close = get_close_matches(word, known, n=1, cutoff=0.4)
    return f"did you mean '{close[0]}'?" if close else f"valid are: {', '.join(known)}."
