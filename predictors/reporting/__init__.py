"""The report on a selection: what was found, as figures and as one page."""
