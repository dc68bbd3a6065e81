"""Search spaces of cells, the genotypes that are found in them, and what those cost."""
