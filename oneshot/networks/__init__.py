"""The networks of a search and of what it found, on images and on text."""
