"""Searches over architectures: the highest score under limits, and whole fronts."""
