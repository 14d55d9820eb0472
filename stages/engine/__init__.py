"""The machinery that all stages share: configuration, loop, checkpoints, logging, several processes."""
