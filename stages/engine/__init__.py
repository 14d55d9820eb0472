"""The machinery every stage runs on: configuration, loop, checkpoints, logging, several processes."""
