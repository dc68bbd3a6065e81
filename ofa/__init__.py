"""Stage 1: one weight-sharing supernet in which every subnet is good without retraining."""

from engine.command.start import start

start()
