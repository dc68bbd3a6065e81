"""A folder with one exported network and all that belongs to it: `python -m export.bundle`."""
