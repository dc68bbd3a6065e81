"""Differentiable search on cells: the DARTS family. Not written yet; see the README for what is."""
