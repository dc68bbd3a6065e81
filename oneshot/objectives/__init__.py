"""What a search is about: images or text. An objective has a network, a loss, and batches for both levels."""
