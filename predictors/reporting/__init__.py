"""The report of a selection: findings as data, pictures, and one page."""
