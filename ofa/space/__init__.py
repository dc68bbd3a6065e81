"""Spaces and architectures: what can be chosen and what was chosen, as data. `python -m ofa.space` describes
one."""
