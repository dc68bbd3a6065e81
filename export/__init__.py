"""From a chosen subnet to a file that a device runs, proved equal to the torch model."""
