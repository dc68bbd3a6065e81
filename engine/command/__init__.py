"""What every command has in common: flags and recipes, signals, progress, and who prints under torchrun."""
