"""NAS-Bench-201 as a look-up table, and the searchers that a method must beat there."""
