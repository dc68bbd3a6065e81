"""Where tensors live and how fast they are worked on: devices, several processes, CPU kernels, operation
counts."""
