"""Recipes, packaged so that `--config ofa/cifar10` works from an installed wheel too."""
