"""Stage 1: one weight-sharing supernet in which every subnet is good without retraining."""

from engine.interrupt import quiet_start

quiet_start()
