"""The search methods, one file a paper."""
