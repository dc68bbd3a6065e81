"""Run a run again from what its folder says, and find where the two differ."""

from engine.command.start import start

# `python -m engine.replay` answers --help before it imports anything else.
start()
