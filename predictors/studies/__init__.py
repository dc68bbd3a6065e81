"""Measurements as trials of Optuna studies, which processes and machines share."""
