"""What is done with run folders as such: list and delete them, and mirror their metrics elsewhere."""

from engine.command.start import start

# `python -m engine.runs` answers --help before it imports anything else.
start()
