"""Search of a space: constraints, costs, and how candidates are proposed, measured and selected."""
