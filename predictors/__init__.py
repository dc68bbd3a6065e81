"""Stage 2: from a trained supernet to the best subnet for a budget, in seconds."""

from engine.command.start import start

start()
