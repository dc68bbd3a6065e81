"""Pictures as data: a canvas of shapes and words, and charts drawn on it."""
