"""Predicted latency: tables of what was measured on a device, and the kit that measures it."""
