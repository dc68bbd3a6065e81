"""Errors a person can act on. The command line prints them as one sentence and exits 2."""

import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches

MOST_OF_A_MESSAGE = 6000  # characters: twenty damaged images are named with their reasons
MOST_OF_A_VALUE = 120  # characters of a value in a message


def shortened(text: str, most: int = MOST_OF_A_VALUE) -> str:
    """`text` with its middle left out if it is longer than `most` characters."""
    # What a file holds may be of any length; a message shows where it begins and ends.
    if len(text) <= most:
        return text
    return f"{text[: most * 2 // 3]} ... {text[-(most // 3) :]} ({len(text):,} characters)"


def is_control(letter: str) -> bool:
    """Whether a letter ends a line, moves the cursor, turns the direction of text, or is half a character."""
    turns = "\u202a" <= letter <= "\u202e" or "\u2066" <= letter <= "\u2069"
    return turns or unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp")


def printable(text: str) -> str:
    """`text` without characters that a terminal obeys or a file cannot hold; they are written as escapes."""
    if text.isprintable():
        return text
    letters = []
    for letter in text:
        if is_control(letter) and letter != "\n":
            letter = letter.encode("unicode_escape").decode("ascii")
        letters.append(letter)
    return "".join(letters)


class UserError(ValueError):
    """Something that the user gave is wrong.

    The message is one sentence that says what is wrong, the value, the choices and the remedy. Of values that
    are too long to be read, and of messages, the middle is left out.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(shortened(message, MOST_OF_A_MESSAGE)))


class WorkerDied(UserError):
    """A worker process that prepares images ended before its work was done."""


class Diverged(UserError):
    """A loss or a weight of a training is no longer finite."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """The end of a sentence about an unknown `word`: the choice most like it, or else all choices."""
    known = sorted(choices)
    # The comparison takes the square of the length, and no choice is so long.
    close = get_close_matches(word[:MOST_OF_A_VALUE], known, n=1, cutoff=0.4)
    return f"did you mean '{close[0]}'?" if close else f"valid are: {', '.join(known)}."
