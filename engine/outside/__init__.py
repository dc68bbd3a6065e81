"""What comes from outside: documents that are read within limits, and names that stay in their folder."""
