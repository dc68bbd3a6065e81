"""Chains of blocks: layers one after the other, each of which chooses its block or is skipped."""
