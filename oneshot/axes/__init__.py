"""What a search method chooses from: relaxation, edge weights, penalties, geometry and derivation."""
