"""What every stage runs on: configuration, commands, run folders, data, devices. It imports no other
stage."""
