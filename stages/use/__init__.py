"""What trained models are used for, beyond the pipeline."""
