"""Accuracy of architectures: measured pairs, predictors that learn from them, and how good those are."""
