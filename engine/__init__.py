"""What every stage runs on: configuration, commands, run folders, data and devices.

The engine imports none of the stages.
"""
