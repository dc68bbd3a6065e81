"""What every stage runs on: configuration, command line, run folders, data, devices. Imports nothing of
ours."""
