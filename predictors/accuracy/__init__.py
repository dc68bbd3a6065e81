"""Predicted accuracy: measured pairs, features, models, and how far the models can be trusted."""
