"""Methods that run some of the operations in a step: they draw them, or keep the best of each edge."""
