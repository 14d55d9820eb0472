"""What a trained experiment is used for: `make sample`, `from stages import load`, releases, exports."""
