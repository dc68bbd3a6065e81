"""Latency, memory and operators of exported files on this machine: `python -m export.benchmark`."""
