"""Methods that change how the network's weights are trained."""
