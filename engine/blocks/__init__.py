"""The layers and blocks that a network of a space is made of."""
