"""Differentiable search on cells: the DARTS family."""

from engine.command.interrupt import quiet_start

quiet_start()
