"""Differentiable search on cells: the DARTS family."""

from engine.command.start import start

start()
