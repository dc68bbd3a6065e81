"""Differentiable search on cells: the DARTS family."""

from engine.interrupt import quiet_start

quiet_start()
