"""A web page that classifies the images dropped on it: `python -m export.demo`."""
