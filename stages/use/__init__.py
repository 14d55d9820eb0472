"""What a trained experiment is used for: `make sample`, the library behind `from stages import load`, releases."""
