"""Finding architectures under limits: constraints, searches, and the measurements they ask for."""
