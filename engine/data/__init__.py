"""Images and text as splits: what a source is, how it is read, and what is done to a batch."""
