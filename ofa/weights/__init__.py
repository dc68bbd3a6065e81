"""Weights from outside: published supernets and single networks."""
