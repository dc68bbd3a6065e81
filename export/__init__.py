"""From a chosen subnet to a file that a device runs, proved equal to the torch model."""

from engine.interrupt import quiet_start

quiet_start()
