"""One step of supernet training: which subnets it trains, and what they learn from."""
